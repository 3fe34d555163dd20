"""JSON Web Tokens and Keys of others: limited in size, parsed, and verified before their claims are used.

https://www.rfc-editor.org/rfc/rfc7515, rfc7517 and rfc8725. The signatures are verified by joserfc.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, RSAKey

MAX_TOKEN = 8 * 1024
_MAX_HEADER = 2 * 1024
_MAX_KID = 256
# The kind of key, and for EC the curve, that an algorithm signs with. HS* and `none` are refused.
_KINDS = {
    "RS256": ("RSA", None),
    "RS384": ("RSA", None),
    "RS512": ("RSA", None),
    "PS256": ("RSA", None),
    "PS384": ("RSA", None),
    "PS512": ("RSA", None),
    "ES256": ("EC", "P-256"),
    "ES384": ("EC", "P-384"),
    "ES512": ("EC", "P-521"),
}
_PUBLIC = ("kty", "kid", "use", "key_ops", "alg", "n", "e", "crv", "x", "y")
_RSA_BITS = range(2048, 8193)
_RSA_SIZE = "an RSA key needs 2048 bits, and at most 8192"
# Characters of base64url: the moduli of such keys, an exponent of four bytes, the largest coordinate.
_MIN_MODULUS, _MAX_MODULUS = 341, 1366
_MAX_EXPONENT, _MAX_COORDINATE = 6, 88


class TokenRefused(Exception):
    """A token cannot be accepted; the text is our own, repeats nothing of the token and may be shown to its sender."""


class UnusableKeyError(Exception):
    """A JSON Web Key cannot be used; the text says why and is for an operator."""


@dataclass(frozen=True, slots=True)
class Parts:
    """A parsed token; none of its claims holds before `verify`."""

    text: str
    header: Mapping[str, Any]
    claims: Mapping[str, Any]

    @property
    def algorithm(self) -> str:
        algorithm = self.header.get("alg")
        return algorithm if isinstance(algorithm, str) else ""

    def text_claim(self, name: str) -> str:
        """A claim that has to be a text. Raises TokenRefused."""
        value = self.claims.get(name)
        if not isinstance(value, str) or not value:
            raise TokenRefused(f"The claim '{name}' is missing or no text")
        return value

    def moment(self, name: str) -> float | None:
        """A claim in seconds since 1970, None where it is absent. Raises TokenRefused for anything but a number."""
        value = self.claims.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TokenRefused(f"The claim '{name}' is no number of seconds")
        return float(value) if abs(value) < 2**53 else float(2**53)


def read(token: str) -> Parts:
    """Parse a compact token. Raises TokenRefused for one that is too long or no JWT."""
    if len(token) > MAX_TOKEN:
        raise TokenRefused("The token is too long")
    segments = token.split(".")
    if len(segments) != 3 or not token.isascii() or len(segments[0]) > _MAX_HEADER:
        raise TokenRefused("The token is no signed JWT")
    return Parts(token, _object(segments[0]), _object(segments[1]))


def _object(segment: str) -> dict[str, Any]:
    try:
        content = urlsafe_b64decode(segment + "=" * (-len(segment) % 4))
        return msgspec.json.decode(content, type=dict[str, Any])
    except (ValueError, msgspec.DecodeError, RecursionError):
        raise TokenRefused("The token is no signed JWT") from None


def check_header(parts: Parts, algorithms: Collection[str], types: Collection[str]) -> str:
    """The key id of a header with allowed fields only. `types` in lower case, "" for none. Raises TokenRefused."""
    header = parts.header
    if parts.algorithm not in algorithms:
        raise TokenRefused(f"The token's 'alg' is none of {', '.join(algorithms)}")
    kind = header.get("typ", "")
    if not isinstance(kind, str) or kind.lower() not in types:
        raise TokenRefused("The token's 'typ' is not the one that is expected here")
    if "crit" in header or "b64" in header:
        raise TokenRefused("The token's header asks for extensions that are not known here")
    kid = header.get("kid")
    if not isinstance(kid, str) or not 0 < len(kid) <= _MAX_KID:
        raise TokenRefused("The token's header names no 'kid'")
    return kid


def verify(parts: Parts, key: RSAKey | ECKey) -> None:
    """Raises TokenRefused unless the key made the signature, with the algorithm that the header names."""
    registry = _Registry(algorithms=[parts.algorithm], strict_check_header=False)
    try:
        jws.deserialize_compact(parts.text, key, registry=registry)
    except (JoseError, ValueError, TypeError, RecursionError):
        raise TokenRefused("The token's signature does not hold") from None


class _Registry(jws.JWSRegistry):
    max_header_length = _MAX_HEADER
    max_payload_length = MAX_TOKEN
    max_signature_length = 2 * 1024


def matching(keys: Iterable[Any], kid: str, algorithm: str) -> list[dict[str, Any]]:
    """The keys of a set with this key id and the kind that the algorithm needs; `the_key` requires exactly one."""
    kind, _ = _KINDS[algorithm]
    return [
        key
        for key in keys
        if isinstance(key, dict) and key.get("kid") == kid and key.get("kty") == kind
    ]


def the_key(found: list[dict[str, Any]], algorithm: str) -> RSAKey | ECKey:
    """The one key that was found. Raises TokenRefused for none, several, or one that cannot be used."""
    if len(found) != 1:
        raise TokenRefused("No single key of the client has this 'kid' and kind")
    try:
        return imported(public_key(found[0], (algorithm,)))
    except UnusableKeyError:
        raise TokenRefused("The client's key cannot be used") from None


def public_key(jwk: Any, algorithms: Collection[str]) -> dict[str, Any]:
    """The public half of a JSON Web Key that signs with one of the algorithms. Raises UnusableKeyError."""
    if not isinstance(jwk, dict):
        raise UnusableKeyError("a key is no JSON object")
    kinds = {_KINDS[algorithm] for algorithm in algorithms}
    curve = jwk.get("crv") if jwk.get("kty") == "EC" else None
    if (jwk.get("kty"), curve) not in kinds:
        raise UnusableKeyError(f"a key is of no kind that {' or '.join(algorithms)} signs with")
    if not isinstance(jwk.get("kid"), str) or not 0 < len(jwk["kid"]) <= _MAX_KID:
        raise UnusableKeyError("a key has no 'kid'")
    if jwk.get("use", "sig") != "sig" or jwk.get("alg", next(iter(algorithms))) not in algorithms:
        raise UnusableKeyError("a key is meant for another use or algorithm")
    operations = jwk.get("key_ops")
    if operations is not None and not (isinstance(operations, list) and "verify" in operations):
        raise UnusableKeyError("a key is not meant for verifying")
    kept = {name: jwk[name] for name in _PUBLIC if name in jwk and name != "key_ops"}
    imported(kept)
    return kept


def imported(jwk: dict[str, Any]) -> RSAKey | ECKey:
    """The imported key. Raises UnusableKeyError for numbers that make no key, or one that is too weak or too large."""
    sizes = {"e": _MAX_EXPONENT, "x": _MAX_COORDINATE, "y": _MAX_COORDINATE}
    if any(len(str(jwk.get(name, ""))) > size for name, size in sizes.items()):
        raise UnusableKeyError("a key's numbers are too long")
    if jwk["kty"] == "RSA" and not _MIN_MODULUS <= len(str(jwk.get("n"))) <= _MAX_MODULUS:
        raise UnusableKeyError(_RSA_SIZE)
    try:
        key: RSAKey | ECKey = (
            RSAKey.import_key(jwk) if jwk["kty"] == "RSA" else ECKey.import_key(jwk)
        )
        if isinstance(key, RSAKey) and key.public_key.key_size not in _RSA_BITS:
            raise UnusableKeyError(_RSA_SIZE)
    except (JoseError, ValueError, TypeError, KeyError):
        raise UnusableKeyError("a key's numbers make no key") from None
    return key

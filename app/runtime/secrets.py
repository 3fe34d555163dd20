"""Secrets at rest: encrypted before they reach the database, with keys that never do.

Fernet (AES-128-CBC with HMAC-SHA256) from `cryptography`. The first key encrypts, all of them decrypt: to rotate, put a
new key in front, and take the old one away once every Subscription with secrets has been written anew.
"""

from __future__ import annotations

import hmac
import logging
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from cryptography.hazmat.primitives.ciphers.aead import AESSIV

from app.settings import Settings

log = logging.getLogger(__name__)

# What is sealed says so: rows from before there were keys hold the values themselves.
_MARK = "sealed:"
_NAME_ONE = "CARERELAY_SECRET_KEY is a key, CARERELAY_SECRET_KEY_FILE names a file of keys"


class SecretsError(Exception):
    """A key cannot be used or is missing; the text is for operators and holds no secret."""


class Secrets:
    """Seals and opens texts. Without a key nothing can be sealed, and what is not sealed opens as it is."""

    def __init__(self, keys: Sequence[str]) -> None:
        try:
            self._fernet = MultiFernet([Fernet(key) for key in keys])
        except ValueError:
            raise SecretsError(
                "A secret key must be 32 bytes in base64url, as `openssl rand -base64 32 | tr +/ -_` makes them"
            ) from None
        # Keys of another use are other keys.
        self._keys = [key.encode() for key in keys]
        self._digest_keys = [hmac.digest(key, b"digests", "sha256") for key in self._keys]

    def digests(self, text: str) -> list[str]:
        """What stands for a text where it need only be told apart from others: one digest by each key, in their order.

        Who has the database and not the keys cannot find out by trying which text it was.
        """
        return [hmac.digest(key, text.encode(), "sha256").hex() for key in self._digest_keys]

    def digest(self, content: bytes, *about: str) -> bytes:
        """What stands for content about something, by the first key, where it need only be found again."""
        # Each part with its length, so that no two lists of parts read alike.
        parts = b"".join(
            len(part).to_bytes(4) + part for part in (*map(str.encode, about), content)
        )
        return hmac.digest(self._digest_keys[0], parts, "sha256")

    def token_seal(self, purpose: str) -> TokenSeal:
        """What seals tokens for one purpose, by keys of its own."""
        about = f"tokens {purpose}".encode()
        return TokenSeal([hmac.digest(key, about, "sha512") for key in self._keys])

    def seal(self, text: str) -> str:
        return _MARK + self._fernet.encrypt(text.encode()).decode()

    def open(self, sealed: str) -> str:
        """The text. Raises SecretsError where none of the keys sealed it."""
        if not sealed.startswith(_MARK):
            return sealed
        try:
            return self._fernet.decrypt(sealed.removeprefix(_MARK)).decode()
        except InvalidToken:
            raise SecretsError("A secret was sealed with a key that this server lacks") from None

    def seal_all(self, texts: Iterable[str]) -> list[str]:
        return [self.seal(text) for text in texts]

    def open_all(self, sealed: Iterable[str]) -> list[str]:
        """The texts. Raises SecretsError as `open` does."""
        return [self.open(text) for text in sealed]


class TokenSeal:
    """Seals what a client carries about and shall neither read nor change: AES-SIV, RFC 5297.

    No nonce goes along, which keeps tokens short; the same content bound to the same gives the same token. The first
    key seals, all of them open.
    """

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._ciphers = [AESSIV(key) for key in keys]

    def seal(self, content: bytes, *bound_to: str) -> bytes:
        return self._ciphers[0].encrypt(content, [each.encode() for each in bound_to])

    def open(self, token: bytes, *bound_to: str) -> bytes:
        """The content. Raises SecretsError for what was not sealed here, bound to the same."""
        for cipher in self._ciphers:
            with suppress(InvalidTag, ValueError):
                return cipher.decrypt(token, [each.encode() for each in bound_to])
        raise SecretsError("A token was not sealed by this server for what it is shown for")


def of_settings(settings: Settings) -> Secrets:
    """The secrets that the settings' keys protect; where none is named, those of a file that is made at first use.

    Raises SecretsError for unusable keys.
    """
    text = settings.secret_key.get_secret_value()
    if text:
        return _of_text(text)
    if settings.secret_key_file is not None:
        return _of_file(settings.secret_key_file, may_make=False)
    try:
        return _of_file(settings.own_key_file, may_make=True)
    except RuntimeError as error:
        raise SecretsError(f"There is no place for a secret key: {error}. {_NAME_ONE}") from None


@lru_cache(maxsize=16)
def _of_file(path: Path, *, may_make: bool) -> Secrets:
    try:
        return _of_text(_read_or_make(path) if may_make else path.read_text())
    except OSError as error:
        raise SecretsError(f"The secret key in {path}: {error.strerror}. {_NAME_ONE}") from None


@lru_cache(maxsize=16)
def _of_text(text: str) -> Secrets:
    keys = [key.strip() for key in text.replace(",", "\n").splitlines() if key.strip()]
    if not keys:
        raise SecretsError("The secret key is empty")
    return Secrets(keys)


def _read_or_make(path: Path) -> str:
    """The key file, made for its owner alone; written aside and linked: processes that start together agree on it."""
    with suppress(FileNotFoundError):
        return path.read_text()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
        out.write(Fernet.generate_key().decode() + "\n")
    try:
        with suppress(FileExistsError):
            os.link(draft, path)
            log.warning(
                "a new secret key was made: %s. Without it nothing that it seals can be opened again; keep a copy, "
                "apart from copies of the database",
                path,
                extra={"action": "secret-key"},
            )
    finally:
        draft.unlink()
    return path.read_text()

"""The check of the server's exposure: beyond loopback it requires authorization and TLS."""

from __future__ import annotations

import ssl

from app.network.egress_policy import is_loopback_host
from app.settings import Settings


class ExposureError(Exception):
    """The settings would open the server to strangers, or name files that cannot be used; says what to set."""


def has_own_tls(settings: Settings) -> bool:
    return settings.tls_certificate is not None


def address(settings: Settings) -> str:
    """The URL of the server for people on this machine."""
    shown = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"{'https' if has_own_tls(settings) else 'http'}://{shown}:{settings.port}"


def needs_tls(settings: Settings) -> bool:
    """Whether only https requests may be answered, by their own scheme or the one a trusted proxy reports."""
    return (
        settings.auth == "smart" and not settings.allow_open and not is_loopback_host(settings.host)
    )


def check(settings: Settings) -> str | None:
    """A warning for the operator, or None. Raises ExposureError."""
    check_certificate(settings)
    if is_loopback_host(settings.host):
        return None
    encrypted = has_own_tls(settings) or settings.trusted_proxy.strip() != ""
    if settings.auth != "smart":
        if not settings.allow_open:
            raise ExposureError(
                f"Without authorization the server listens on loopback only, and {settings.host} is "
                "not loopback. Use --host 127.0.0.1; or --auth smart with CARERELAY_TLS_CERTIFICATE; "
                "or set CARERELAY_ALLOW_OPEN=1 where something else keeps strangers out."
            )
        return "No authorization: whoever reaches it reads and changes every record"
    if encrypted:
        return None
    if not settings.allow_open:
        raise ExposureError(
            f"Without TLS the server listens on loopback only, and {settings.host} is not loopback. "
            "Set CARERELAY_TLS_CERTIFICATE and CARERELAY_TLS_KEY; or CARERELAY_TRUSTED_PROXY to the "
            "address or CIDR of the proxy that ends TLS in front of this server."
        )
    return "No TLS: tokens and records can be read on their way"


def pages_warning(settings: Settings) -> str | None:
    """A warning for the operator where pages from anywhere may use a server without authorization."""
    if settings.auth == "smart" or "*" not in settings.cors_origins:
        return None
    return "No authorization, and CARERELAY_CORS_ORIGINS lets every web page read and change every record"


def check_certificate(settings: Settings) -> None:
    """Raises ExposureError where the certificate or its key cannot be used."""
    if settings.tls_certificate is None:
        if settings.tls_key is not None:
            raise ExposureError("CARERELAY_TLS_KEY is set without CARERELAY_TLS_CERTIFICATE.")
        return
    for file in (settings.tls_certificate, settings.tls_key):
        if file is not None and not file.is_file():
            raise ExposureError(f"{file} is no file that can be read (CARERELAY_TLS_*).")
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(settings.tls_certificate, settings.tls_key, password="")
    except OSError as error:
        raise ExposureError(
            f"{settings.tls_certificate}: the certificate and its key do not fit or cannot be read "
            f"({error.strerror or type(error).__name__}). Set CARERELAY_TLS_CERTIFICATE and "
            "CARERELAY_TLS_KEY to PEM files, the key without a passphrase."
        ) from None

"""The certificate and key that the endpoint shows, looked at before anything starts."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from cryptography import x509

from ray_profile.errors import ConfigError


def options(certificate: str | None, key: str | None, now: datetime) -> Mapping[str, str]:
    """What Serve's proxy is told of TLS; nothing where neither file is named.

    Raises `ConfigError` for one without the other, and for files that are unreadable, no certificate or key, not of
    each other, or of another time than `now`.
    """
    if certificate is None and key is None:
        return {}
    if certificate is None or key is None:
        named, missing = ("key", "certificate") if certificate is None else ("certificate", "key")
        raise ConfigError(f"serve.tls_{named} is set and serve.tls_{missing} is not; TLS needs both, in PEM")
    _insist_on_time(certificate, now)
    _read("key", key)
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key, password="")  # without one it would ask at the terminal
    except ssl.SSLError as error:
        raise ConfigError(
            f"serve.tls_key {key!r} is no key of serve.tls_certificate {certificate!r} ({error.reason or error}); "
            "name the PEM key that the certificate was made with, without a passphrase"
        ) from error
    return {"ssl_certfile": certificate, "ssl_keyfile": key}


def _insist_on_time(path: str, now: datetime) -> None:
    try:
        first, *_ = x509.load_pem_x509_certificates(_read("certificate", path))
    except ValueError as error:
        raise ConfigError(f"serve.tls_certificate {path!r} holds no PEM certificate ({error})") from error
    if not first.not_valid_before_utc <= now < first.not_valid_after_utc:
        raise ConfigError(
            f"serve.tls_certificate {path!r} is valid from {first.not_valid_before_utc:%Y-%m-%d} to "
            f"{first.not_valid_after_utc:%Y-%m-%d %H:%M} UTC, which is not now; name a certificate that is"
        )


def _read(what: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"serve.tls_{what} {path!r} cannot be read ({error.strerror}); name a PEM file") from error

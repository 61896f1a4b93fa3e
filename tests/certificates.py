"""A home-made certificate authority, for tests of TLS."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

NOW = datetime.now(UTC)


@dataclass(frozen=True)
class Pair:
    """What a server of 127.0.0.1 shows, and the authority that vouches for it, as PEM files."""

    certificate: Path
    key: Path
    authority: Path


def made(folder: Path, begins: datetime = NOW - timedelta(days=1), ends: datetime = NOW + timedelta(days=1)) -> Pair:
    """A new authority, and a certificate that it signed."""
    folder.mkdir(parents=True, exist_ok=True)
    pair = Pair(folder / "server.pem", folder / "server.key", folder / "ca.pem")
    root, own = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    ca, server = (x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]) for name in ("home CA", "server"))

    def signed(subject: x509.Name, key: ec.EllipticCurvePrivateKey, extension: x509.ExtensionType) -> bytes:
        builder = x509.CertificateBuilder(ca, subject, key.public_key(), x509.random_serial_number(), begins, ends)
        whole = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
        return whole.sign(root, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    pair.authority.write_bytes(signed(ca, root, x509.BasicConstraints(ca=True, path_length=None)))
    pair.certificate.write_bytes(signed(server, own, address))
    pair.key.write_bytes(
        own.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return pair

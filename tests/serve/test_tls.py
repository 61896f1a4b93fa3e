"""The endpoint's certificate is looked at before anything starts."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import certificates
import pytest
from cryptography.hazmat.primitives import serialization

from ray_profile.config import load
from ray_profile.errors import ConfigError
from ray_profile.serve import tls

NOW = certificates.NOW


def test_a_certificate_and_its_key_are_passed_on(tmp_path: Path) -> None:
    pair = certificates.made(tmp_path)
    wanted = {"ssl_certfile": str(pair.certificate), "ssl_keyfile": str(pair.key)}
    assert tls.options(str(pair.certificate), str(pair.key), NOW) == wanted
    assert tls.options(None, None, NOW) == {}


def test_paths_are_those_of_the_configuration_s_folder(tmp_path: Path) -> None:
    (tmp_path / "shop.toml").write_text('root = "x"\n[serve]\ntls_certificate = "a.pem"\ntls_key = "b.pem"\n')
    settings = load(tmp_path / "shop.toml").serve
    assert (settings.tls_certificate, settings.tls_key) == (str(tmp_path / "a.pem"), str(tmp_path / "b.pem"))


def _other_key(pair: certificates.Pair) -> None:
    pair.key.write_bytes(certificates.made(pair.key.parent / "other").key.read_bytes())


def _with_passphrase(pair: certificates.Pair) -> None:
    key = serialization.load_pem_private_key(pair.key.read_bytes(), None)
    lock = serialization.BestAvailableEncryption(b"secret")
    pair.key.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, lock))


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (
            lambda pair: pair.certificate.unlink(),
            r"serve\.tls_certificate '.*server\.pem' cannot be read \(No such file",
        ),
        (lambda pair: pair.key.unlink(), r"serve\.tls_key '.*server\.key' cannot be read \(No such file"),
        (lambda pair: pair.certificate.write_text("x"), r"serve\.tls_certificate '.*server\.pem' holds no PEM"),
        (lambda pair: pair.certificate.write_bytes(pair.key.read_bytes()), r"tls_certificate '.*' holds no PEM"),
        (lambda pair: pair.key.write_text("x"), r"serve\.tls_key '.*server\.key' is no key of serve\.tls_certificate"),
        (_other_key, r"serve\.tls_key '.*server\.key' is no key of .*MISMATCH.* name the PEM key"),
        (_with_passphrase, r"serve\.tls_key '.*server\.key' is no key of .*without a passphrase"),
    ],
)
def test_files_that_cannot_be_used_are_named(
    tmp_path: Path, spoil: Callable[[certificates.Pair], None], match: str
) -> None:
    pair = certificates.made(tmp_path)
    spoil(pair)
    with pytest.raises(ConfigError, match=match):
        tls.options(str(pair.certificate), str(pair.key), NOW)


def test_a_certificate_of_another_time_is_refused(tmp_path: Path) -> None:
    day = timedelta(days=1)
    for begins, ends in ((NOW - 3 * day, NOW - day), (NOW + day, NOW + 3 * day)):
        pair = certificates.made(tmp_path, begins, ends)
        with pytest.raises(ConfigError, match=rf"is valid from {begins:%Y-%m-%d} to {ends:%Y-%m-%d}.*not now"):
            tls.options(str(pair.certificate), str(pair.key), NOW)


def test_one_without_the_other_is_refused(tmp_path: Path) -> None:
    pair = certificates.made(tmp_path)
    with pytest.raises(ConfigError, match=r"serve\.tls_certificate is set and serve\.tls_key is not"):
        tls.options(str(pair.certificate), None, NOW)
    with pytest.raises(ConfigError, match=r"serve\.tls_key is set and serve\.tls_certificate is not"):
        tls.options(None, str(pair.key), NOW)

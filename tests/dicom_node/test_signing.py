"""The node's key: made once, kept from others, and what its signature is worth."""

import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from structlog.testing import capture_logs

from dicom_node import signing
from dicom_node.errors import CertificateNotValid, SettingsError
from dicom_node.service import check_certificate
from dicom_node.settings import Settings, SigningSettings
from tests.certificates import SigningCertificate, signing_certificate


def test_the_key_is_made_once_and_for_its_owner_alone(tmp_path):
    first = signing.own_key(tmp_path / "state")
    again = signing.own_key(tmp_path / "state")

    assert signing.public_text(first) == signing.public_text(again)
    mode = (tmp_path / "state" / signing.FILE).stat().st_mode
    assert stat.S_IMODE(mode) == 0o600
    assert [path.name for path in (tmp_path / "state").iterdir()] == [signing.FILE]


def test_processes_that_ask_at_the_same_time_get_the_same_key(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        keys = set(pool.map(lambda _: signing.public_text(signing.own_key(tmp_path)), range(32)))

    assert len(keys) == 1


def test_a_key_that_others_can_read_is_refused(tmp_path):
    signing.own_key(tmp_path)
    (tmp_path / signing.FILE).chmod(0o640)

    with pytest.raises(SettingsError, match="mode 0640 opens the key"):
        signing.own_key(tmp_path)


def test_a_file_that_is_no_key_is_refused(tmp_path):
    path = tmp_path / signing.FILE
    path.touch(0o600)

    with pytest.raises(SettingsError, match="holds no private key"):
        signing.own_key(tmp_path)


def test_only_the_owner_of_the_key_signs_and_only_what_was_signed(tmp_path):
    key, other = signing.own_key(tmp_path / "a"), signing.own_key(tmp_path / "b")
    signature = key.sign(b"statement")

    assert signing.is_signed_by(signing.public_text(key), signature, b"statement")
    assert not signing.is_signed_by(signing.public_text(key), signature, b"statemen!")
    assert not signing.is_signed_by(signing.public_text(other), signature, b"statement")


def test_a_public_key_is_taken_as_digits_as_their_file_or_as_pem(tmp_path):
    key = Ed25519PrivateKey.generate()
    digits = signing.public_text(key)
    (tmp_path / "digits").write_text(f"{digits}\n")
    pem = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    (tmp_path / "pem").write_bytes(pem)

    for given in (digits, str(tmp_path / "digits"), str(tmp_path / "pem")):
        assert signing.public_key(given) == digits
    for wrong in ("", "12", "zz" * 32, str(tmp_path / "gone")):
        with pytest.raises(SettingsError, match="is no Ed25519 public key"):
            signing.public_key(wrong)


def section(made: SigningCertificate, **changed: str) -> SigningSettings:
    return SigningSettings(**made.section | changed)


def test_a_certificate_signs_and_none_is_none(tmp_path):
    certified = signing.certified(section(signing_certificate(tmp_path)), datetime.now(UTC))

    assert certified.sign(b"content") == certified.sign(b"content") != certified.sign(b"other")
    assert signing.certified(SigningSettings(), datetime.now(UTC)) is None
    with pytest.raises(ValueError, match="certificate and key go together"):
        SigningSettings(certificate="signing.pem")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"key": "gone"}, "gone: No such file"),
        ({"certificate": "gone"}, "gone: No such file"),
        ({"certificate": "junk"}, "junk holds no certificate"),
        ({"key": "junk"}, "junk holds no private key"),
        ({"key": "elliptic/signing.key"}, "signing.key holds no RSA key"),
        ({"key": "other/signing.key"}, "signing.key is not the key of"),
        ({"key": "open.key"}, "mode 0644 opens the key"),
    ],
)
def test_a_certificate_that_cannot_sign_says_why(tmp_path, monkeypatch, wrong, said):
    monkeypatch.chdir(tmp_path)
    right = signing_certificate(tmp_path / "right")
    signing_certificate(tmp_path / "other")
    signing_certificate(tmp_path / "elliptic", "ec")
    (tmp_path / "junk").write_text("junk")
    (tmp_path / "junk").chmod(0o600)
    (tmp_path / "open.key").write_bytes(right.key.read_bytes())
    (tmp_path / "open.key").chmod(0o644)

    with pytest.raises(SettingsError, match=said):
        signing.certified(section(right, **wrong), datetime.now(UTC))


def test_a_certificate_is_used_in_its_time_alone(tmp_path):
    settings = section(signing_certificate(tmp_path))

    with pytest.raises(CertificateNotValid, match="is valid from 20.* until 20.*, not now"):
        signing.certified(settings, datetime.now(UTC) + timedelta(days=31))
    assert signing.certified(settings, datetime.now(UTC)) is not None


def test_an_expired_certificate_keeps_no_node_from_starting_and_a_wrong_one_does(tmp_path):
    made = signing_certificate(tmp_path)
    later = datetime.now(UTC) + timedelta(days=31)

    with capture_logs() as logs:
        check_certificate(Settings(signing=section(made)), later)

    assert [line["event"] for line in logs] == ["signing.not_valid"]
    made.key.write_text("junk")
    with pytest.raises(SettingsError, match="holds no private key"):
        check_certificate(Settings(signing=section(made)), later)

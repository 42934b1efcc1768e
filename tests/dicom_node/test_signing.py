"""The node's key: made once, kept from others, and what its signature is worth."""

import stat
from concurrent.futures import ThreadPoolExecutor

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dicom_node import signing
from dicom_node.errors import SettingsError


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

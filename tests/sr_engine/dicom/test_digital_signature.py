"""dcmtk, which is not ours, verifies the digital signature of everything that we write."""

import shutil
import subprocess
from datetime import UTC, datetime, timedelta

import pydicom
import pytest

from dicom_node import signing
from dicom_node.settings import SigningSettings
from sr_engine.dicom.digital_signature import Notary
from sr_engine.dicom.kinds import COMPANIONS
from sr_engine.dicom.reader import read_series
from sr_engine.dicom.seal import Signer
from tests import phantoms
from tests.certificates import signing_certificate
from tests.validators import errors

KINDS = ["classic", "enhanced", *(f"classic+{name}" for name in COMPANIONS)]
A_WHILE = timedelta(seconds=1, microseconds=250_000)

pytestmark = pytest.mark.skipif(shutil.which("dcmsign") is None, reason="dcmtk is not installed")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    return signing_certificate(tmp_path_factory.mktemp("certificate"))


def derived(folder, certificate):
    """Return one file of each kind, signed if there is a certificate."""
    notary = None
    if certificate is not None:
        settings = SigningSettings(**certificate.section)
        certified = signing.certified(settings, datetime.now(UTC))
        at = certified.valid_from + A_WHILE
        notary = Notary(certificate=certified.certificate, sign=certified.sign, at=at)
    signer = Signer(key="ab" * 32, sign=lambda content: content[:64], notary=notary)
    source = read_series(phantoms.corner_series(folder / "in", "double-oblique").paths)
    outputs = phantoms.derive(source, folder / "out", kinds=KINDS, signer=signer).outputs
    return {one.kind: one.paths[0] for one in outputs}


@pytest.fixture(scope="module")
def files(tmp_path_factory, certificate):
    return derived(tmp_path_factory.mktemp("signed"), certificate)


@pytest.fixture(scope="module")
def unsigned(tmp_path_factory):
    return derived(tmp_path_factory.mktemp("unsigned"), None)


def verify(path, certificate):
    """Return whether dcmtk finds one good signature by the creator, and what it says."""
    command = ["dcmsign", "-v", "--verify", "+rc", "+cf", str(certificate.certificate), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return done.returncode == 0 and "1 signatures verified" in done.stdout + done.stderr, (
        done.stdout + done.stderr
    )


@pytest.mark.parametrize("kind", KINDS)
def test_dcmtk_verifies_what_was_written(kind, files, unsigned, certificate):
    good, said = verify(files[kind], certificate)

    assert good and "0 corrupted" in said, said
    assert ".250000+0000" in said
    assert errors("dciodvfy", files[kind]) <= errors("dciodvfy", unsigned[kind])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda d: setattr(d, "WindowWidth", 3),
        lambda d: setattr(d, "PixelData", bytes(len(d.PixelData))),
        lambda d: setattr(d, "SeriesInstanceUID", "1.2.3"),
        lambda d: d.DerivationCodeSequence[0].__setattr__("CodeMeaning", "another"),
        lambda d: d.DigitalSignaturesSequence[0].__setattr__("DigitalSignatureUID", "1.2.3"),
    ],
)
def test_what_was_changed_is_noticed(spoil, files, certificate, tmp_path):
    dataset = pydicom.dcmread(files["classic"])
    spoil(dataset)
    dataset.save_as(tmp_path / "changed.dcm")

    good, said = verify(tmp_path / "changed.dcm", certificate)

    assert not good, said


def test_a_corrected_patient_leaves_it_whole(files, certificate, tmp_path):
    dataset = pydicom.dcmread(files["classic"])
    dataset.PatientName, dataset.AccessionNumber = "Corrected^Name", "A2"
    dataset.save_as(tmp_path / "corrected.dcm")

    assert verify(tmp_path / "corrected.dcm", certificate)[0]


def test_another_attempt_writes_the_same_bytes(files, certificate, tmp_path):
    again = derived(tmp_path, certificate)

    for kind, path in files.items():
        assert again[kind].read_bytes() == path.read_bytes(), kind

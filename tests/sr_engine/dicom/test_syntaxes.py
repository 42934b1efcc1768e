"""Every transfer syntax that the node takes: decoded to the bit, or marked as lossy for good."""

import base64
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import get_decoder
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from dicom_node.syntaxes import TRANSFER_SYNTAXES
from sr_engine.dicom.reader import read_series
from tests import phantoms
from tests.rigs import dcmtk

NATIVE = [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
PYTHON = [RLELossless, JPEGLSLossless, JPEG2000Lossless]
DCMTK = {
    JPEGLosslessSV1: ("dcmcjpeg", "+e1"),
    JPEGLossless: ("dcmcjpeg", "+el"),
    JPEGLSLossless: ("dcmcjpls", "+el"),
    RLELossless: ("dcmcrle",),
}
LOSSY = {
    JPEG2000: "ISO_15444_1",
    HTJ2K: "ISO_15444_15",
    JPEGLSNearLossless: "ISO_14495_1",
    JPEGBaseline8Bit: "ISO_10918_1",
    JPEGExtended12Bit: "ISO_10918_1",
}
# One plane of 40 x 36 values, `ripples`, encoded by OpenJPH: no encoder is among our packages.
HTJ2K_RIPPLES = (
    "/0//UQApQAAAAAAkAAAAKAAAAAAAAAAAAAAAJAAAACgAAAAAAAAAAAABDwEB/1AACAACAAAACv9SAAwAAgABAAUEBE"
    "AB/1wAEyCIkJCQkJCQkJCQkJCQiIiI/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAA5IAAf+TwAArAI3r"
    "CPqs9kj7AoG0AMAAE8AAE8AAEwDjGfEDC3QAQTvFAMI0AEP4Awd0AMAAFZAABXQAAVDFZ81/EteQAcyDlQCbjQjFd3"
    "Un/QAhgb+WALOEruEAQZQAwAAW5AABdPAABabF4Dr0bh0ui8V+PzU1NjaUOVr5ALOkdAABl5kAd9q5BSUa63eQdruH"
    "VxBzzOINN0jY8qbpAICwAA9zk8hZwjfyJr8AY0RaMbBPXKwNRsYL7nyHGodYAMAAF67AABetwAAXUv0zOfexxw2V8a"
    "bge/Phr/styvei4iHBA5cYiIAL2isqEUggIAAkUvl8xMfVzl5RyUuCCgESQOKyPxFu6/iGZXchw4MIHrAFMCCf8BB7"
    "/oZXgt/grexGD6lUSSK3Afl7k7HX8rprmCUFII+nhuoQrmvf07Rp6jpJ4riUXUMtpzABgCc4o7Dq9QH4BxgSUBmgSI"
    "AoTQ/AWWDjgf4gAMwhABFCEAFFwEY/9I66cXv6QMiQFFD6ad/hvgGAb7BCiDHMAICGAYQBJQCj4QBHWym0f+GYFv0D"
    "Rycnn4MXcWUtPTx4AcAAL7FgABfXcAAL08Dfd1f9/V1314OB0Fl/X/0/z/Ndfx8IcNH19/3Zuq7Z338fEEAv8Lrt74"
    "6Ji2n/Px/goNGl6doNde+uigtJlKBA2Q01G1AhVKL879b2DHfP7ro3SY33739vdHR0793/BwhwEPj79s83y5L/de8D"
    "AujR+++6/3/7/11e94EBl/l4nangIug6FUji13hqJnclRd4M72zN7gUHYjZ1bmi+tWls6mgjOFoyQMjrjgBaUI6Ov1"
    "6xqdqR2sGy11aEFq2FRjUbLQqXBP9//3//f+66v/vu7v7/eTxNmlY+z/P/fZ9k2/6JOabRRosp5p/tLXn+P0+23vkc"
    "U2yjjRRznO/dkvzv/z+el5dVUZGVl5f/f/67++7urrv7v6qqug9wA+gA+gAABowgKCoqKCAYDAEAAfQBdED7d4BAEY"
    "wFDxjA9+xjA9yjEBKP1gUGgvu7pGIau7ERDSAeai9YsV3znrxlbWpkUClKW1o9dKBT0lCDZF4GgeY+zFQKPXlbC6i5"
    "X2FdvQS9AyRABRBgoUMAAAAhaBECgAAqQAIcLPlICCdDOq2NIawBSPV581H1efAZmwVUmNawTGGm2jAGdWKIojpmte"
    "jt6aaKp3N8CdB8J6pFWDcD/9k="
)


def ripples() -> np.ndarray:
    """Return the values that HTJ2K_RIPPLES holds."""
    x, y = np.meshgrid(np.arange(36) - 17, np.arange(40) - 20)
    return (np.hypot(x, y) * 150).astype("<u2") % 4096


def transcode(path: Path, syntax: UID, *, fragments: int = 1, **options) -> None:
    """Write a file anew in another transfer syntax."""
    dataset = pydicom.dcmread(path)
    if syntax.is_encapsulated:
        dataset.compress(syntax, generate_instance_uid=False, **options)
        frames = list(generate_frames(dataset.PixelData, number_of_frames=1))
        dataset.PixelData = encapsulate(frames, fragments_per_frame=fragments, has_bot=False)
        dataset.save_as(path)
        return
    if not syntax.is_little_endian:
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
    dataset.file_meta.TransferSyntaxUID = syntax
    pydicom.dcmwrite(
        path,
        dataset,
        implicit_vr=syntax.is_implicit_VR,
        little_endian=syntax.is_little_endian,
        force_encoding=True,
    )


def with_dcmtk(path: Path, syntax: UID, *options: str) -> None:
    """Write a file anew with the encoder of dcmtk."""
    tool, *chosen = DCMTK[syntax]
    program = dcmtk(tool)
    if program is None:
        pytest.skip(f"{tool} (Debian: dcmtk) is not installed")
    subprocess.run([program, *chosen, *options, str(path), str(path)], check=True)
    assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == syntax


def derived_bytes(folder: Path, out: Path) -> list[bytes]:
    """Return the files of the series that is derived from `folder`."""
    written = phantoms.derive(read_series([folder]), out).written
    return [path.read_bytes() for path in written.paths]


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> list[bytes]:
    """The files that are derived from the phantom as it is."""
    folder = tmp_path_factory.mktemp("plain")
    phantoms.corner_series(folder / "in", "double-oblique")
    return derived_bytes(folder / "in", folder / "out")


def test_what_is_received_can_be_decoded():
    assert all(get_decoder(UID(syntax)).is_available for syntax in TRANSFER_SYNTAXES)


@pytest.mark.parametrize(
    ("syntax", "fragments"),
    # RLE has one fragment a frame (PS3.5 A.4.2)
    [*((syntax, 1) for syntax in (*NATIVE, *PYTHON)), (JPEGLSLossless, 3), (JPEG2000Lossless, 3)],
    ids=lambda value: value.keyword if isinstance(value, UID) else f"{value} fragments",
)
def test_a_series_in_another_syntax_gives_the_same_derived_files(
    syntax, fragments, plain, tmp_path
):
    paths = phantoms.corner_series(tmp_path / "in", "double-oblique").paths
    for path in paths:
        transcode(path, syntax, fragments=fragments)

    assert derived_bytes(tmp_path / "in", tmp_path / "out") == plain


@pytest.mark.parametrize("syntax", DCMTK, ids=lambda uid: uid.keyword)
def test_what_dcmtk_has_compressed_gives_the_same_derived_files(syntax, plain, tmp_path):
    paths = phantoms.corner_series(tmp_path / "in", "double-oblique").paths
    for path in paths:
        with_dcmtk(path, syntax)

    assert derived_bytes(tmp_path / "in", tmp_path / "out") == plain


@pytest.mark.parametrize(
    "syntax", [HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K], ids=lambda uid: uid.keyword
)
def test_high_throughput_jpeg_2000_is_decoded(syntax, tmp_path):
    paths = phantoms.corner_series(tmp_path, BitsStored=16, HighBit=15).paths[:4]

    def encode(dataset):
        dataset.PixelData = encapsulate([base64.b64decode(HTJ2K_RIPPLES)])
        dataset["PixelData"].is_undefined_length = True
        dataset.file_meta.TransferSyntaxUID = syntax

    for path in paths:
        phantoms.edit(path, encode)

    source = read_series(paths)

    assert all(np.array_equal(plane, ripples()) for plane in source.volume.array)
    assert source.lossy == (syntax == HTJ2K)


def test_slices_of_one_series_may_come_in_different_syntaxes(plain, tmp_path):
    paths = phantoms.corner_series(tmp_path / "in", "double-oblique").paths
    for path, syntax in zip(paths, [*NATIVE, *PYTHON, ExplicitVRLittleEndian], strict=False):
        transcode(path, syntax)

    assert derived_bytes(tmp_path / "in", tmp_path / "out") == plain


@pytest.mark.parametrize("bits", [12, 16])
@pytest.mark.parametrize("syntax", [*PYTHON, *DCMTK], ids=lambda uid: uid.keyword)
def test_signed_values_survive_every_lossless_syntax(syntax, bits, tmp_path):
    paths = phantoms.corner_series(tmp_path).paths[:4]
    low = -(1 << (bits - 1))

    def signed(dataset):
        values = np.linspace(low, -low - 1, dataset.Rows * dataset.Columns).astype("<i2")
        dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = bits, bits - 1, 1
        dataset.PixelData = values.tobytes()

    for path in paths:
        phantoms.edit(path, signed)
    expected = read_series(paths).volume.array
    for path in paths:
        if syntax in PYTHON:
            transcode(path, syntax)
        else:
            with_dcmtk(path, syntax)

    assert np.array_equal(read_series(paths).volume.array, expected)
    assert expected.min() == low


@pytest.mark.parametrize(
    ("syntax", "options"),
    [(JPEG2000, {"j2k_cr": [2]}), (JPEGLSNearLossless, {"jls_error": 2})],
    ids=["JPEG2000", "JPEGLSNearLossless"],
)
def test_what_was_lossy_once_is_lossy_in_the_derived_series(syntax, options, tmp_path):
    paths = phantoms.corner_series(tmp_path / "in").paths
    transcode(paths[3], syntax, **options)  # one slice is enough

    derived = phantoms.derive(read_series([tmp_path / "in"]), tmp_path / "out").written

    for path in derived.paths:
        dataset = pydicom.dcmread(path)
        assert dataset.LossyImageCompression == "01"
        assert LOSSY[syntax] in dataset.LossyImageCompressionMethod
        assert float(dataset.LossyImageCompressionRatio) > 1


def test_a_stated_loss_is_kept_although_the_pixels_come_uncompressed(tmp_path):
    stated = {"LossyImageCompression": "01", "LossyImageCompressionRatio": "8"}
    phantoms.corner_series(tmp_path / "in", **stated)

    derived = phantoms.derive(read_series([tmp_path / "in"]), tmp_path / "out").written

    assert pydicom.dcmread(derived.paths[0]).LossyImageCompression == "01"

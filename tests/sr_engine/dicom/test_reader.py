"""Reading series: every slice in its place, every unfit series refused with a reason."""

import numpy as np
import pydicom
import pytest
import SimpleITK

from sr_engine.dicom.reader import field_strength_t, read_headers, read_series
from sr_engine.dicom.scanner import PATIENT_NAME, write_acquisition
from sr_engine.errors import (
    GeometryError,
    HeaderError,
    InputRefused,
    NotDicom,
    PixelDecodeError,
    UnsupportedInput,
)
from tests import phantoms

ORIENTATIONS = list(phantoms.ORIENTATIONS)


def value_at(volume, position_lps_mm):
    """Return the voxel whose centre is at a position."""
    index = np.linalg.inv(volume.affine) @ [*position_lps_mm, 1]
    assert np.allclose(index, np.rint(index), atol=1e-4)
    return volume.array[tuple(np.rint(index[:3]).astype(int))]


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_every_corner_is_where_the_scanner_put_it(orientation, tmp_path):
    phantom = phantoms.corner_series(tmp_path, orientation)

    source = read_series(phantom.paths)

    assert source.volume.array.dtype == np.float32
    assert source.volume.spatial_shape == phantoms.SHAPE
    for value, position in phantom.corners.items():
        assert value_at(source.volume, position) == value


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_slices_run_along_the_normal_whatever_the_files_are_called(orientation, tmp_path):
    phantom = phantoms.corner_series(tmp_path, orientation)
    shuffled = np.random.default_rng(0).permutation(len(phantom.paths))
    for number, index in enumerate(shuffled):
        phantoms.edit(phantom.paths[index], lambda d, n=number: setattr(d, "InstanceNumber", n + 1))

    source = read_series([phantom.paths[index] for index in shuffled])

    unit_k, unit_i, unit_j = source.volume.unit_vectors()
    assert np.allclose(unit_k, np.cross(unit_j, unit_i))
    assert np.allclose(source.volume.affine, phantom.volume.affine, atol=1e-6)
    assert np.array_equal(source.volume.array, phantom.volume.array)
    positions = [np.array(h.ImagePositionPatient, float) @ unit_k for h in source.headers]
    assert np.all(np.diff(positions) > 0)


def test_a_stack_stored_against_the_normal_is_turned_round(tmp_path):
    volume, corners = phantoms.corner_volume("coronal")
    write_acquisition(volume[::-1], tmp_path, tags={})

    source = read_series([tmp_path])

    for value, position in corners.items():
        assert value_at(source.volume, position) == value


@pytest.mark.parametrize("name", phantoms.FAULTS)
def test_a_series_that_is_no_volume_is_refused(name, tmp_path):
    fault = phantoms.FAULTS[name]

    with pytest.raises(fault.error, match=fault.reason) as refusal:
        read_series([phantoms.faulty_series(tmp_path, name)])

    assert PATIENT_NAME not in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(UnsupportedInput, match="no DICOM file"):
        read_series([tmp_path])


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(NotDicom, match="absent.dcm cannot be read"):
        read_series([tmp_path / "absent.dcm"])


@pytest.mark.parametrize("jitter", [1e-8, 1e-6, 1e-4])
def test_orientation_jitter_is_averaged_out(jitter, tmp_path):
    phantom = phantoms.corner_series(tmp_path, "double-oblique")
    rng = np.random.default_rng(1)
    for path in phantom.paths:
        away = rng.uniform(-jitter, jitter, 6)

        def shake(dataset, away=away):
            shaken = np.array(dataset.ImageOrientationPatient, float) + away
            dataset.ImageOrientationPatient = [f"{value:.10f}" for value in shaken]

        phantoms.edit(path, shake)

    source = read_series(phantom.paths)

    assert np.allclose(source.volume.affine, phantom.volume.affine, atol=20 * jitter)


def test_rescale_of_every_slice_is_applied_and_the_private_philips_scale_is_not(tmp_path):
    phantom = phantoms.corner_series(tmp_path)
    for index, path in enumerate(phantom.paths):

        def philips(dataset, index=index):
            dataset.RescaleSlope, dataset.RescaleIntercept = 1 + index / 4, -index
            block = dataset.private_block(0x2005, "Philips MR Imaging DD 001", create=True)
            block.add_new(0x0E, "FL", 0.25)

        phantoms.edit(path, philips)

    array = read_series(phantom.paths).volume.array

    index = np.arange(len(array))[:, None, None]
    assert np.allclose(array, phantom.volume.array * (1 + index / 4) - index)


@pytest.mark.parametrize(("bits", "low"), [(12, -2048), (16, -32768)])
def test_signed_pixels_keep_their_sign(bits, low, tmp_path):
    phantom = phantoms.corner_series(tmp_path)

    def signed(dataset):
        values = np.linspace(low, -low - 1, dataset.Rows * dataset.Columns).astype(int)
        dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = bits, bits - 1, 1
        dataset.PixelData = (values & ((1 << bits) - 1)).astype("<u2").tobytes()

    for path in phantom.paths:
        phantoms.edit(path, signed)

    array = read_series(phantom.paths).volume.array
    assert (array.min(), array.max()) == (low, -low - 1)


def test_bits_above_the_high_bit_are_no_pixels(tmp_path):
    phantom = phantoms.corner_series(tmp_path)

    def overlay(dataset):
        values = np.frombuffer(dataset.PixelData, "<u2") | 0x8000
        dataset.PixelData = values.astype("<u2").tobytes()

    for path in phantom.paths:
        phantoms.edit(path, overlay)

    assert np.array_equal(read_series(phantom.paths).volume.array, phantom.volume.array)


def test_one_frame_in_classic_mr_is_accepted(tmp_path):
    phantom = phantoms.corner_series(tmp_path, NumberOfFrames=1)

    assert read_series(phantom.paths).volume.spatial_shape == phantoms.SHAPE


@pytest.mark.parametrize(("stated", "tesla"), [("1.5", 1.5), ("15000", 1.5), ("", None)])
def test_field_strength_is_in_tesla(stated, tesla):
    header = pydicom.Dataset()
    header.MagneticFieldStrength = stated
    assert field_strength_t(header) == tesla


@pytest.mark.parametrize(
    ("image_type", "corrected"), [("DIS3D", True), ("ND", False), ("NORM", None)]
)
def test_distortion_correction_is_read_from_image_type(image_type, corrected, tmp_path):
    phantom = phantoms.corner_series(tmp_path, ImageType=["ORIGINAL", "PRIMARY", "M", image_type])

    assert read_series(phantom.paths).distortion_corrected is corrected


@pytest.mark.parametrize(("distance", "acquisition"), [(5.0, "2D"), (1.5, "3D")])
def test_a_missing_acquisition_type_is_guessed_from_the_slice_distance(
    distance, acquisition, tmp_path
):
    volume, _ = phantoms.corner_volume(spacing_mm=(distance, 1, 1))
    write_acquisition(volume, tmp_path, tags={"MRAcquisitionType": ""})

    assert read_series([tmp_path]).acquisition == acquisition


def test_headers_carry_no_pixels_and_a_dicomdir_is_passed_over(tmp_path):
    phantom = phantoms.corner_series(tmp_path)
    directory = pydicom.dcmread(phantom.paths[0])
    directory.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
    directory.save_as(tmp_path / "DICOMDIR")

    source = read_series([tmp_path])

    assert all("PixelData" not in header for header in source.headers)
    assert len(read_headers([tmp_path])) == len(source.sop_uids) == phantoms.SHAPE[0]


REAL = {  # shape, spacing, acquisition, field strength
    "p01": ((27, 512, 512), (1.5, 0.41015625, 0.41015625), "3D", 1.5),
    "p02": ((20, 256, 256), (6.9993, 0.859375, 0.859375), "2D", 1.5),
    "p03": ((35, 256, 256), (4.8, 1.015625, 1.015625), "2D", 3.0),
    "p04": ((96, 128, 128), (2, 2, 2), "3D", 3.0),
    "p06": ((20, 128, 128), (2, 2, 2), "3D", 3.0),
    "p35": ((14, 256, 256), (1.2, 0.9375, 0.9375), "3D", 3.0),
}


@pytest.mark.parametrize("name", REAL)
def test_a_real_series_is_read(name, shared_series):
    shape, spacing_mm, acquisition, tesla = REAL[name]

    source = read_series([shared_series(name)])

    assert source.volume.spatial_shape == shape
    assert source.spacing_mm == pytest.approx(spacing_mm, abs=1e-3)
    assert (source.acquisition, source.field_strength_t) == (acquisition, tesla)
    assert source.volume.array.max() > 500
    assert len(source.headers) == shape[0]
    assert source.multiframe is (name == "p04")
    assert len(source.sop_uids) == (1 if name == "p04" else shape[0])


@pytest.mark.parametrize(
    ("name", "error", "reason"),
    [
        ("p05", GeometryError, "1 slice.* missing"),
        ("p20", UnsupportedInput, "mosaic"),
        ("p21", HeaderError, "more than one file"),
        ("p22", UnsupportedInput, "mosaic"),
        ("p23", UnsupportedInput, "several volumes"),
        ("p24", UnsupportedInput, "no magnitude"),
        ("p25", UnsupportedInput, "differ in EchoTime"),
        ("p26", GeometryError, "more than one orientation"),
        ("p27", GeometryError, "too few slices"),
        ("p28", UnsupportedInput, "Secondary Capture"),
        ("p29", UnsupportedInput, "CT Image Storage"),
        ("p30", UnsupportedInput, "SR Storage"),
        ("p31", UnsupportedInput, "several volumes"),
        ("p34", GeometryError, "more than one orientation"),
        ("p36", PixelDecodeError, "8130 vs 8192 bytes"),
        ("p37", GeometryError, "too few slices"),
        ("p38", GeometryError, "more than one orientation"),
    ],
)
def test_an_awkward_real_series_is_refused_with_its_reason(name, error, reason, shared_series):
    with pytest.raises(error, match=reason):
        read_series([shared_series(name)])


def test_files_that_are_no_dicom_are_refused_one_by_one(shared_series):
    for path in sorted(shared_series("p39").iterdir()):
        with pytest.raises(InputRefused) as refusal:
            read_series([path])
        assert isinstance(refusal.value, NotDicom | PixelDecodeError)


# p02 rounds positions to 0.1 mm: ITK starts at the first slice, we at the best-fitting line.
@pytest.mark.parametrize(
    ("name", "tolerance_mm"),
    [("p01", 0.01), ("p03", 0.01), ("p04", 0.01), ("p06", 0.01), ("p35", 0.01), ("p02", 0.1)],
)
def test_voxels_are_where_simpleitk_sees_them(name, tolerance_mm, shared_series):
    folder = shared_series(name)

    source = read_series([folder])
    image = _read_with_itk(folder)

    size = np.array(image.GetSize())
    corners = np.array(list(np.ndindex(2, 2, 2))) * (size - 1)
    theirs = [image.TransformIndexToPhysicalPoint([int(n) for n in c]) for c in corners]
    ends = corners[:, ::-1]
    ours = source.volume.map_indices_to_reference(ends)
    assert source.volume.spatial_shape == tuple(size[::-1])
    assert np.allclose(_sorted(theirs), _sorted(ours), atol=tolerance_mm)


def _read_with_itk(folder):
    files = [str(path) for path in sorted(folder.iterdir())]
    if len(files) == 1:
        return SimpleITK.ReadImage(files[0])
    reader = SimpleITK.ImageSeriesReader()
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in files]
    normal = np.cross(*np.reshape(headers[0].ImageOrientationPatient, (2, 3)).astype(float))
    along = [np.array(h.ImagePositionPatient, float) @ normal for h in headers]
    reader.SetFileNames([files[index] for index in np.argsort(along)])
    return reader.Execute()


def _sorted(points):
    points = np.asarray(points)
    return points[np.lexsort(np.round(points, 0).T)]


def test_random_damage_is_refused_or_harmless(tmp_path):
    """Whatever the bytes of a header are, the reader answers with a volume or a refusal."""
    path = phantoms.corner_series(tmp_path).paths[5]
    content = path.read_bytes()
    header = len(content) - 2 * phantoms.SHAPE[1] * phantoms.SHAPE[2]
    rng = np.random.default_rng(4)
    refusals = 0
    for _ in range(60):
        damaged = bytearray(content)
        for place in rng.integers(132, header, rng.choice([1, 2, 5, 20])):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged[: rng.integers(140, len(content) * 4)])
        try:
            assert np.all(np.isfinite(read_series([tmp_path]).volume.array))
        except InputRefused:
            refusals += 1
    assert refusals > 20

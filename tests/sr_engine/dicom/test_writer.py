"""The derived series: every attribute of the design page, and the same bytes every time."""

import os
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pydicom
import pytest
from highdicom import Volume
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

from sr_engine.dicom import display, template
from sr_engine.dicom.provenance import from_dataset
from sr_engine.dicom.reader import read_series
from sr_engine.dicom.writer import JobIdentity, write_durably
from sr_engine.errors import RecipeError, WriteError
from sr_engine.recipe import Recipe
from tests import phantoms


@pytest.fixture
def phantom(tmp_path):
    return phantoms.corner_series(tmp_path / "source", "double-oblique")


@pytest.fixture
def source(phantom):
    return read_series(phantom.paths)


def first_of(derived):
    return pydicom.dcmread(derived.written.paths[0])


def derive_from(tmp_path, *, recipe=None, job=phantoms.JOB, change=None, **tags):
    """Return the first derived instance of a phantom with changed tags."""
    phantom = phantoms.corner_series(tmp_path / "source", **tags)
    for path in phantom.paths if change else []:
        phantoms.edit(path, change)
    series = read_series(phantom.paths)
    return first_of(phantoms.derive(series, tmp_path / "out", recipe=recipe, job=job))


def voxels(volume, dataset):
    """Return the index of a written slice's first voxel and of its last in `volume`."""
    row, column = np.reshape([float(v) for v in dataset.ImageOrientationPatient], (2, 3))
    down, across = (float(v) for v in dataset.PixelSpacing)
    first = np.array([float(v) for v in dataset.ImagePositionPatient])
    last = first + row * across * (dataset.Columns - 1) + column * down * (dataset.Rows - 1)
    return volume.map_reference_to_indices(np.stack([first, last]))


@pytest.mark.parametrize("orientation", phantoms.ORIENTATIONS)
@pytest.mark.parametrize("factors", [(1, 2, 2), (2, 1, 3)])
def test_written_planes_are_those_of_the_volume(orientation, factors, tmp_path):
    series = read_series(phantoms.corner_series(tmp_path / "in", orientation).paths)
    volume = phantoms.finer(series, factors)

    written = phantoms.derive(series, tmp_path / "out", volume=volume).written

    for index, path in enumerate(written.paths):
        dataset = pydicom.dcmread(path)
        ends = voxels(volume, dataset)
        shape = np.array(volume.spatial_shape)
        assert np.allclose(ends, [[index, 0, 0], [index, shape[1] - 1, shape[2] - 1]], atol=1e-4)
        assert np.array_equal(dataset.pixel_array, volume.array[index])


def test_the_reader_gets_back_the_volume_that_was_written(source, tmp_path):
    derived = phantoms.derive(source, tmp_path / "out")

    def disguise(dataset):  # the reader refuses our own output
        dataset.ImageType = ["DERIVED", "SECONDARY", "OTHER"]
        dataset.remove_private_tags()

    for path in derived.written.paths:
        phantoms.edit(path, disguise)

    again = read_series([tmp_path / "out"])

    volume = phantoms.finer(source)
    assert np.allclose(again.volume.affine, volume.affine, atol=1e-5)
    assert np.array_equal(again.volume.array, volume.array)


def test_twice_the_same_job_gives_the_same_bytes(source, tmp_path):
    first = phantoms.derive(source, tmp_path / "a").written
    second = phantoms.derive(source, tmp_path / "b").written

    assert first.sop_uids == second.sop_uids
    for one, other in zip(first.paths, second.paths, strict=True):
        assert one.read_bytes() == other.read_bytes()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        f"{number:05d}.dcm" for number in range(1, 13)
    ]


def test_another_generation_is_another_series(source, tmp_path):
    first = phantoms.derive(source, tmp_path / "a")
    second = phantoms.derive(source, tmp_path / "b", job=replace(phantoms.JOB, generation=2))

    assert first.written.series_uid != second.written.series_uid
    assert (first_of(first).SeriesNumber, first_of(second).SeriesNumber) == (201, 202)


def test_identity_of_the_derived_series(source, tmp_path):
    derived = phantoms.derive(source, tmp_path)
    dataset, scanner = first_of(derived), source.headers[0]

    assert dataset.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert dataset.SOPClassUID == derived.written.sop_class_uid == MRImageStorage
    assert list(dataset.ImageType) == ["DERIVED", "SECONDARY", "OTHER", "AI_SR"]
    for keyword in ("PatientName", "PatientID", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert dataset[keyword].value == scanner[keyword].value
    assert dataset.SeriesInstanceUID == derived.written.series_uid != scanner.SeriesInstanceUID
    assert dataset.SeriesDescription == "t1_mpr AI-SR RESEARCH"
    assert dataset.SyntheticData == "YES"
    assert dataset.ContentQualification == "RESEARCH"
    assert dataset.BurnedInAnnotation == "NO"
    assert "17" in dataset.ImageComments


def test_what_was_acquired_stays_as_acquired(source, tmp_path):
    dataset = first_of(phantoms.derive(source, tmp_path))

    assert float(dataset.MagneticFieldStrength) == 1.5
    for keyword in (
        "RepetitionTime",
        "EchoTime",
        "InversionTime",
        "FlipAngle",
        "AcquisitionMatrix",
        "ScanningSequence",
        "SequenceVariant",
        "MRAcquisitionType",
        "StationName",
        "PixelBandwidth",
        "PatientPosition",
        "BodyPartExamined",
    ):
        assert dataset[keyword].value == source.headers[0][keyword].value
    assert "7T" in dataset.DerivationDescription
    others = [e for e in dataset if e.keyword != "DerivationDescription" and e.VR != "SQ"]
    assert not any("7T" in str(element.value) for element in others)


def test_derivation_names_every_source_instance(source, tmp_path):
    dataset = first_of(phantoms.derive(source, tmp_path))

    images = dataset.SourceImageSequence
    assert tuple(item.ReferencedSOPInstanceUID for item in images) == source.sop_uids
    assert {item.SpatialLocationsPreserved for item in images} == {"NO"}
    assert {item.PurposeOfReferenceCodeSequence[0].CodeValue for item in images} == {"121322"}
    (series,) = dataset.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == source.series_uid
    listed = series.ReferencedInstanceSequence
    assert tuple(item.ReferencedSOPInstanceUID for item in listed) == source.sop_uids
    (related,) = dataset.RelatedSeriesSequence
    assert related.PurposeOfReferenceCodeSequence[0].CodeValue == "121323"
    assert dataset.DerivationCodeSequence[0].CodeValue == "113085"
    assert "not for diagnosis" in dataset.DerivationDescription
    assert len(dataset.DerivationDescription) <= 1024


def test_the_scanner_moves_to_contributing_equipment_and_we_are_the_equipment(source, tmp_path):
    dataset = first_of(phantoms.derive(source, tmp_path))

    scanner, ours = dataset.ContributingEquipmentSequence
    assert scanner.Manufacturer == "DICOM-NODE PHANTOM"
    assert scanner.PurposeOfReferenceCodeSequence[0].CodeValue == "109101"
    assert ours.PurposeOfReferenceCodeSequence[0].CodeValue == "109102"
    assert ours.ContributionDateTime.startswith("2026030")
    assert dataset.Manufacturer == "DICOM-NODE"
    assert list(dataset.SoftwareVersions) == [
        "sr-engine 0.0.1",
        "phantom-student",
        "sha256 abababababababab",
    ]


def test_earlier_contributing_equipment_is_kept(tmp_path):
    item = pydicom.Dataset()
    item.Manufacturer = "SOMEONE"
    item.PurposeOfReferenceCodeSequence = template.code(("109103", "Modifying Equipment"))

    dataset = derive_from(
        tmp_path, change=lambda d: setattr(d, "ContributingEquipmentSequence", [item])
    )

    names = [entry.Manufacturer for entry in dataset.ContributingEquipmentSequence]
    assert names == ["SOMEONE", "DICOM-NODE PHANTOM", "DICOM-NODE"]


def test_a_site_may_keep_the_scanner_as_manufacturer(tmp_path):
    dataset = derive_from(tmp_path, recipe=Recipe(keep_scanner_manufacturer=True))

    assert dataset.Manufacturer == "DICOM-NODE PHANTOM"
    assert dataset.ManufacturerModelName == "PHANTOM 1.5T"


def test_a_scanner_without_a_name_is_called_unknown(tmp_path):
    dataset = derive_from(tmp_path, recipe=Recipe(keep_scanner_manufacturer=True), Manufacturer="")

    assert dataset.ContributingEquipmentSequence[0].Manufacturer == "UNKNOWN"
    assert dataset.Manufacturer == "DICOM-NODE"


def test_the_switches_of_the_recipe_reach_the_tags(tmp_path):
    recipe = Recipe(synthetic_data=False, content_qualification="PRODUCT", description_suffix=" SR")

    dataset = derive_from(tmp_path, recipe=recipe)

    assert "SyntheticData" not in dataset
    assert dataset.ContentQualification == "PRODUCT"
    assert dataset.SeriesDescription == "t1_mpr SR"


def test_research_is_sticky_and_so_are_burned_in_annotations(tmp_path):
    dataset = derive_from(
        tmp_path,
        recipe=Recipe(content_qualification="PRODUCT"),
        ContentQualification="RESEARCH",
        BurnedInAnnotation="YES",
    )

    assert (dataset.ContentQualification, dataset.BurnedInAnnotation) == ("RESEARCH", "YES")


def test_lossy_is_sticky_with_ratio_and_method(tmp_path):
    dataset = derive_from(
        tmp_path,
        LossyImageCompression="01",
        LossyImageCompressionRatio="8.5",
        LossyImageCompressionMethod="ISO_15444_1",
    )

    assert (dataset.LossyImageCompression, dataset.LossyImageCompressionMethod) == (
        "01",
        "ISO_15444_1",
    )
    assert float(dataset.LossyImageCompressionRatio) == 8.5


def test_a_long_series_description_keeps_our_suffix(tmp_path):
    dataset = derive_from(tmp_path, SeriesDescription="x" * 64)

    assert len(dataset.SeriesDescription) == 64
    assert dataset.SeriesDescription.endswith("x AI-SR RESEARCH")


@pytest.mark.parametrize(
    ("stated", "job", "expected"),
    [
        (3, phantoms.JOB, 301),
        (747197466, phantoms.JOB, 9001),
        (None, phantoms.JOB, 9001),
        (3, replace(phantoms.JOB, series_number=77), 77),
    ],
)
def test_series_number(stated, job, expected, tmp_path):
    assert derive_from(tmp_path, job=job, SeriesNumber=stated).SeriesNumber == expected


@pytest.mark.parametrize(
    ("offset", "expected"),
    [("+0230", ("20260304", "073607")), ("-0600", ("20260303", "230607"))],
)
def test_dates_are_the_jobs_in_the_local_time_of_the_source(offset, expected, tmp_path):
    dataset = derive_from(tmp_path, TimezoneOffsetFromUTC=offset)

    for name in ("Series", "Content", "InstanceCreation"):
        assert (dataset[f"{name}Date"].value, dataset[f"{name}Time"].value) == expected
    assert dataset.AcquisitionDate == "20260105"
    assert dataset.TimezoneOffsetFromUTC == offset


def test_a_job_without_a_time_zone_is_refused():
    with pytest.raises(WriteError, match="has no time zone"):
        JobIdentity(job_id=1, created=datetime(2026, 1, 1))


def test_the_earliest_acquisition_of_the_slices_is_kept(tmp_path):
    phantom = phantoms.corner_series(tmp_path / "in")
    for number, path in enumerate(phantom.paths):
        time = f"09{59 - number:02d}00"
        phantoms.edit(path, lambda d, time=time: setattr(d, "AcquisitionTime", time))
    source = read_series(phantom.paths)

    assert first_of(phantoms.derive(source, tmp_path / "out")).AcquisitionTime == "094800"


def test_a_source_without_acquisition_times_gets_none(tmp_path):
    dataset = derive_from(tmp_path, AcquisitionDate=None, AcquisitionTime=None)

    assert "AcquisitionDate" not in dataset


def test_instance_numbers_run_in_the_direction_of_the_source(tmp_path):
    phantom = phantoms.corner_series(tmp_path / "in")
    upward = phantoms.derive(read_series(phantom.paths), tmp_path / "up").written
    for number, path in enumerate(phantom.paths):
        phantoms.edit(path, lambda d, n=number: setattr(d, "InstanceNumber", 100 - n))
    downward = phantoms.derive(read_series(phantom.paths), tmp_path / "down").written

    assert [int(pydicom.dcmread(p).InstanceNumber) for p in upward.paths] == list(range(1, 13))
    assert [int(pydicom.dcmread(p).InstanceNumber) for p in downward.paths] == list(
        range(12, 0, -1)
    )


def test_what_describes_the_old_pixels_is_left_behind(tmp_path):
    def describe(dataset):
        block = dataset.private_block(0x0029, "SIEMENS CSA HEADER", create=True)
        block.add_new(0x10, "OB", b"csa ")
        dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = 2, 0, "US"
        dataset.add_new("SmallestImagePixelValue", "US", 0)
        dataset.add_new("LargestImagePixelValue", "US", 99)
        dataset.add_new("PixelPaddingValue", "US", 0)
        dataset.TriggerTime = 5
        dataset.ImagesInAcquisition = 12
        dataset.IconImageSequence = []

    dataset = derive_from(tmp_path, change=describe)

    for keyword in (
        "RescaleSlope",
        "RescaleIntercept",
        "RescaleType",
        "PixelPaddingValue",
        "SmallestImagePixelValue",
        "LargestImagePixelValue",
        "TriggerTime",
        "ImagesInAcquisition",
        "IconImageSequence",
    ):
        assert keyword not in dataset
    assert {tag.group for tag in dataset.keys() if tag.is_private} == {0x0075}


@pytest.mark.parametrize("declared", [None, "ISO_IR 100", "ISO_IR 192", "ISO_IR 13"])
def test_patient_bytes_survive_a_wrong_character_set(declared, tmp_path):
    """A name in Latin-1, declared as something else, comes out as the bytes that came in."""
    phantom = phantoms.corner_series(tmp_path / "in", SpecificCharacterSet=declared)
    name = "GR\xd6\xdfE^ANNA".encode("latin-1")
    for path in phantom.paths:
        path.write_bytes(path.read_bytes().replace(b"PHANTOM^DEMO", name + b"  "))

    derived = phantoms.derive(read_series(phantom.paths), tmp_path / "out")

    assert name in derived.written.paths[0].read_bytes()


def test_a_value_that_is_no_number_is_copied_as_it_is(tmp_path):
    phantom = phantoms.corner_series(tmp_path / "in", PatientWeight="77.5")
    for path in phantom.paths:
        path.write_bytes(path.read_bytes().replace(b"77.5", b"77,5"))

    derived = phantoms.derive(read_series(phantom.paths), tmp_path / "out")

    assert b"77,5" in derived.written.paths[0].read_bytes()


def test_patient_names_in_a_declared_character_set_stay_readable(tmp_path):
    name = "Wang^XiaoDong=王^小东"

    def declare(dataset):
        dataset.SpecificCharacterSet = "ISO_IR 192"
        dataset.PatientName, dataset.InstitutionName = name, "医院"

    dataset = derive_from(tmp_path, change=declare)

    assert str(dataset.PatientName) == name
    assert dataset.ContributingEquipmentSequence[0].InstitutionName == "医院"


def test_spacing_and_thickness_are_those_of_the_new_grid(tmp_path):
    series = read_series(phantoms.corner_series(tmp_path / "in").paths)
    dataset = first_of(
        phantoms.derive(series, tmp_path / "out", volume=phantoms.finer(series, (2, 1, 1)))
    )

    assert float(dataset.SliceThickness) == float(dataset.SpacingBetweenSlices) == 0.75
    assert [float(v) for v in dataset.PixelSpacing] == [1.0, 1.25]


def test_the_provenance_is_carried_by_every_instance(source, tmp_path):
    derived = phantoms.derive(source, tmp_path)

    carried = {from_dataset(pydicom.dcmread(path)).digest() for path in derived.written.paths}
    assert carried == {derived.written.provenance.digest()}
    assert derived.written.provenance.slices == 12
    assert derived.written.provenance.derived_series_uid == derived.written.series_uid


def test_negative_values_are_clipped_and_counted(source, tmp_path):
    volume = phantoms.finer(source)
    volume.array[0, :2, :3] = -4

    derived = phantoms.derive(source, tmp_path, volume=volume)

    assert derived.written.provenance.clipped_voxels == 6
    assert first_of(derived).pixel_array[:2, :3].max() == 0


def test_twelve_bits_where_they_hold_the_values_else_sixteen(source, tmp_path):
    assert first_of(phantoms.derive(source, tmp_path / "a")).BitsStored == 12
    volume = phantoms.finer(source)
    volume.array[3, 3, 3] = 5000

    dataset = first_of(phantoms.derive(source, tmp_path / "b", volume=volume))

    assert (dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation) == (16, 15, 0)


@pytest.mark.parametrize(
    ("scale", "gain"), [(1.0, 1.0), (1e-4, 5e4), (0.004, 2000.0), (0.5, 1.0), (100.0, 0.05)]
)
def test_scanner_units_are_stored_as_they_are_unless_sixteen_bits_cannot(scale, gain):
    source = np.array([0, 700, 2200], np.float32) * np.float32(scale)

    stored = display.to_stored(source, source)

    assert stored.gain == pytest.approx(gain)
    assert np.allclose(stored.array / stored.gain, source, atol=0.5 / stored.gain)


def test_a_gain_is_written_down_and_moves_the_window(tmp_path):
    dataset = derive_from(
        tmp_path, RescaleSlope="0.001", RescaleIntercept="0", WindowCenter="0.4", WindowWidth="0.8"
    )

    assert from_dataset(dataset).pixel_gain == 5000
    assert "x 5000" in dataset.DerivationDescription
    assert float(dataset.WindowCenter) == pytest.approx(2000, rel=0.02)


def test_an_empty_volume_keeps_gain_one():
    assert display.pixel_gain(np.zeros(3), np.zeros(3)) == 1.0


def shown(array, centre, width):
    """Return the linear VOI LUT output in 0 ... 1 (PS3.3 C.11.2.1.2)."""
    return np.clip((array - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)


@pytest.mark.parametrize("gain", [1.0, 0.8, 1.3])
def test_the_head_is_displayed_as_bright_as_in_the_source(source, gain, tmp_path):
    volume = phantoms.finer(source)
    volume = Volume(volume.array * gain + 12, volume.affine, coordinate_system="PATIENT")

    dataset = first_of(phantoms.derive(source, tmp_path, volume=volume))

    header = source.headers[0]
    head = source.volume.array > 300
    before = shown(source.volume.array[head], header.WindowCenter, header.WindowWidth)
    fine = np.repeat(np.repeat(head, 2, 1), 2, 2)
    after = shown(volume.array[fine], float(dataset.WindowCenter), float(dataset.WindowWidth))
    assert np.median(after) == pytest.approx(np.median(before), rel=0.02)


@pytest.mark.parametrize("width", [None, 0])
def test_without_a_usable_window_percentiles_are_shown(width, tmp_path):
    phantom = phantoms.corner_series(tmp_path / "in", WindowCenter=width, WindowWidth=width)
    source = read_series(phantom.paths)

    dataset = first_of(phantoms.derive(source, tmp_path / "out"))

    low, high = np.percentile(source.volume.array, (1, 99))
    assert float(dataset.WindowCenter) == pytest.approx((low + high) / 2, abs=1)
    assert float(dataset.WindowWidth) == pytest.approx(high - low, abs=1)


def test_a_constant_source_keeps_its_window():
    header = pydicom.Dataset()
    header.WindowCenter, header.WindowWidth = [100, 50], [200, 50]
    flat = np.full(9, 40.0)

    assert display.window([header], flat, flat) == (100, 200)


@pytest.mark.parametrize(("value", "text"), [(512.4, "512"), (3.14159265, "3.1416")])
def test_window_values_are_short(value, text):
    assert display.window_value(value) == text


def test_values_that_are_not_finite_are_not_written(source, tmp_path):
    volume = phantoms.finer(source)
    volume.array[1, 1, 1] = np.nan

    with pytest.raises(WriteError, match="not finite"):
        phantoms.derive(source, tmp_path / "out", volume=volume)
    assert not (tmp_path / "out").exists()


def test_a_volume_against_the_normal_is_not_written(source, tmp_path):
    with pytest.raises(WriteError, match="against the normal"):
        phantoms.derive(source, tmp_path / "out", volume=phantoms.finer(source)[::-1])


def test_a_full_disk_leaves_no_partial_file(source, tmp_path, monkeypatch):
    dataset = first_of(phantoms.derive(source, tmp_path / "out"))

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WriteError, match="x.dcm cannot be written: No space left"):
        write_durably(dataset, tmp_path / "x.dcm")
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == []


def test_an_enhanced_source_is_referenced_as_one_instance(shared_series, tmp_path):
    source = read_series([shared_series("p04")])

    dataset = first_of(phantoms.derive(source, tmp_path, volume=source.volume))

    (item,) = dataset.SourceImageSequence
    assert item.ReferencedSOPInstanceUID == source.sop_uids[0]
    assert item.ReferencedSOPClassUID == source.sop_class_uid
    assert "ReferencedFrameNumber" not in item
    assert list(dataset.ScanningSequence) == ["GR", "IR"]
    assert dataset.SOPClassUID == MRImageStorage
    assert "NumberOfFrames" not in dataset
    assert datetime.strptime(dataset.AcquisitionDate, "%Y%m%d").replace(tzinfo=UTC).year == 2022


def test_a_site_may_set_what_its_hanging_protocols_ask_for(tmp_path):
    recipe = Recipe(series_number_base=900_000, body_part="BRAIN", protocol_name="7T-LIKE HEAD")

    region = pydicom.Dataset()
    region.CodeValue, region.CodingSchemeDesignator = "45048000", "SCT"
    region.CodeMeaning = "Neck"

    dataset = derive_from(tmp_path, recipe=recipe, AnatomicRegionSequence=[region])

    assert dataset.SeriesNumber == 900_201
    assert "AnatomicRegionSequence" not in dataset  # of the source, and another one
    assert (dataset.BodyPartExamined, dataset.ProtocolName) == ("BRAIN", "7T-LIKE HEAD")


def test_a_window_of_the_full_range_shows_the_darkest_and_the_brightest(tmp_path, source):
    dataset = first_of(phantoms.derive(source, tmp_path, recipe=Recipe(window="full")))

    low, high = np.percentile(phantoms.finer(source).array, (1, 99))
    centre, width = float(dataset.WindowCenter), float(dataset.WindowWidth)
    assert centre - width / 2 == pytest.approx(low, abs=1)
    assert centre + width / 2 == pytest.approx(high, abs=1)


@pytest.mark.parametrize(
    "values",
    [
        {"series_number_base": -1},
        {"body_part": "brain"},
        {"body_part": "X" * 17},
        {"protocol_name": "a\\b"},
        {"protocol_name": "x" * 65},
        {"window": "bright"},
    ],
)
def test_an_impossible_tag_is_refused(values):
    with pytest.raises(RecipeError, match=next(iter(values))):
        Recipe(**values)

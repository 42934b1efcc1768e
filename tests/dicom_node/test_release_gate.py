"""A good derived series passes; each single damage is named by its rule."""

import shutil
from dataclasses import replace

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from dicom_node.gate_geometry import values
from dicom_node.release_gate import check
from sr_engine.dicom import provenance
from sr_engine.dicom.headers import read_headers
from sr_engine.dicom.reader import read_series
from sr_engine.recipe import Recipe
from tests import phantoms

SECRET = "SECRET^PATIENT"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Return a source folder and the good series derived from it."""
    folder = tmp_path_factory.mktemp("gate")
    phantom = phantoms.corner_series(
        folder / "source",
        "double-oblique",
        LossyImageCompression="01",
        LossyImageCompressionRatio="5",
        LossyImageCompressionMethod="ISO_15444_1",
        **phantoms.CONTRAST,
    )
    return phantom, phantoms.derive(read_series(phantom.paths), folder / "out")


@pytest.fixture
def series(good, tmp_path):
    """Return the source's files and a private copy of the derived files, in volume order."""
    phantom, derived = good
    copies = [tmp_path / path.name for path in derived.written.paths]
    for path, copy in zip(derived.written.paths, copies, strict=True):
        shutil.copy(path, copy)
    return phantom.paths, copies, derived.provenance


def rules_of(findings):
    return {finding.rule for finding in findings}


def test_an_undamaged_series_passes(series):
    source, derived, made = series

    assert check(derived, source, made) == []
    assert check(list(reversed(derived)), read_headers(source), made) == []


@pytest.mark.parametrize("orientation", phantoms.ORIENTATIONS)
@pytest.mark.parametrize("factors", [(1, 1, 1), (3, 2, 1)])
def test_every_orientation_and_grid_passes(orientation, factors, tmp_path):
    phantom = phantoms.corner_series(tmp_path / "in", orientation)
    source = read_series(phantom.paths)

    derived = phantoms.derive(source, tmp_path / "out", volume=phantoms.finer(source, factors))

    assert check(derived.written.paths, phantom.paths, derived.provenance) == []


@pytest.mark.parametrize("name", ["p01", "p02", "p03", "p04", "p06", "p35"])
def test_a_series_derived_from_a_real_one_passes(name, shared_series, tmp_path):
    folder = shared_series(name)
    source = read_series([folder])
    volume = source.volume if name == "p01" else phantoms.finer(source)

    derived = phantoms.derive(source, tmp_path, volume=volume)

    assert check(derived.written.paths, sorted(folder.iterdir()), derived.provenance) == []
    assert check(derived.written.paths, source.headers, derived.provenance) == []


def put(**values):
    def change(dataset):
        for keyword, value in values.items():
            setattr(dataset, keyword, value)

    return change


def drop(*keywords):
    def change(dataset):
        for keyword in keywords:
            delattr(dataset, keyword)

    return change


def one(change):
    return lambda paths: phantoms.edit(paths[4], change)


def every(change):
    def damage(paths):
        for path in paths:
            phantoms.edit(path, change)

    return damage


def unlink(*indices):
    def damage(paths):
        for index in sorted(indices, reverse=True):
            paths.pop(index).unlink()

    return damage


def moved(by_mm, axis=2):
    """Return a change that shifts a slice along an axis (0: row, 1: column, 2: normal)."""

    def change(dataset):
        row, column = np.reshape(np.array(dataset.ImageOrientationPatient, float), (2, 3))
        direction = (row, column, np.cross(row, column))[axis]
        shifted = np.array(dataset.ImagePositionPatient, float) + by_mm * direction
        dataset.ImagePositionPatient = [f"{value:.6f}" for value in shifted]

    return change


def same_position(paths):
    position = pydicom.dcmread(paths[3]).ImagePositionPatient
    phantoms.edit(paths[4], put(ImagePositionPatient=position))


def same_uid(paths):
    uid = pydicom.dcmread(paths[3]).SOPInstanceUID

    def change(dataset):
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid

    phantoms.edit(paths[4], change)


def take_source_uid(dataset):
    uid = dataset.SourceImageSequence[0].ReferencedSOPInstanceUID
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid


def take_source_series(dataset):
    dataset.SeriesInstanceUID = dataset.RelatedSeriesSequence[0].SeriesInstanceUID


def swap_numbers(paths):
    for path, number in ((paths[2], 4), (paths[3], 3)):
        phantoms.edit(path, put(InstanceNumber=number))


def turn(dataset):
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]


def foreign_reference(dataset):
    dataset.SourceImageSequence[2].ReferencedSOPInstanceUID = "1.2.3"


def fewer_references(dataset):
    dataset.SourceImageSequence = dataset.SourceImageSequence[:5]


def vendor_block(dataset):
    block = dataset.private_block(0x0029, "SIEMENS CSA HEADER", create=True)
    block.add_new(0x10, "OB", b"csa ")


def forge(dataset):
    block = dataset.private_block(provenance.GROUP, provenance.CREATOR)
    block[provenance.DOCUMENT].value = block[provenance.DOCUMENT].value.replace("0.0.1", "0.0.2")


def changed_document(**values):
    """Return a change of what the provenance says, its hash made to fit."""

    def change(dataset):
        made = provenance.from_dataset(dataset)
        provenance.to_private_block(dataset, replace(made, **values))

    return change


def short_pixels(dataset):
    dataset.PixelData = dataset.PixelData[:-2]


def beyond_bits(dataset):
    dataset.PixelData = np.full(dataset.Rows * dataset.Columns, 5000, "<u2").tobytes()


def constant(dataset):
    dataset.PixelData = bytes(len(dataset.PixelData))


def other_pixel(dataset):
    stored = bytearray(dataset.PixelData)
    stored[0] ^= 1
    dataset.PixelData = bytes(stored)


def add_range(smallest, largest):
    def change(dataset):
        dataset.add_new("SmallestImagePixelValue", "US", smallest)
        dataset.add_new("LargestImagePixelValue", "US", largest)

    return change


DAMAGE = {
    # what the validators do not see (design page of the derived series, section 4)
    "wrong SpacingBetweenSlices": (every(put(SpacingBetweenSlices=2)), "spacing_between_slices"),
    "stale SliceThickness": (one(put(SliceThickness=3)), "slice_thickness"),
    "missing SliceThickness": (one(drop("SliceThickness")), "slice_thickness"),
    "duplicate position": (same_position, "duplicate_position"),
    "slice missing": (unlink(5), "gap_in_stack"),
    "slice moved": (one(moved(0.3)), "gap_in_stack"),
    "slice moved sideways": (one(moved(0.3, axis=0)), "gap_in_stack"),
    "other frame of reference": (one(put(FrameOfReferenceUID="1.2.3")), "frame_of_reference"),
    "other frame of reference everywhere": (
        every(put(FrameOfReferenceUID="1.2.3")),
        "frame_of_reference",
    ),
    "ORIGINAL": (one(put(ImageType=["ORIGINAL", "PRIMARY", "M"])), "image_type"),
    "no ImageType": (one(drop("ImageType")), "image_type"),
    "no DerivationDescription": (one(drop("DerivationDescription")), "derivation_tags"),
    "no DerivationCodeSequence": (one(drop("DerivationCodeSequence")), "derivation_tags"),
    "no SourceImageSequence": (one(drop("SourceImageSequence")), "derivation_tags"),
    "no ContributingEquipment": (one(drop("ContributingEquipmentSequence")), "derivation_tags"),
    "stale LargestImagePixelValue": (one(add_range(0, 77)), "stale_pixel_value_range"),
    "padding value": (
        one(lambda d: d.add_new("PixelPaddingValue", "US", 0)),
        "stale_pixel_value_range",
    ),
    "overlay": (
        one(lambda d: d.add_new(0x60000010, "US", 64)),
        "stale_pixel_value_range",
    ),
    "duplicate InstanceNumber": (one(put(InstanceNumber=4)), "duplicate_instance_number"),
    "no window": (one(drop("WindowCenter", "WindowWidth")), "window"),
    "window of width 0": (every(put(WindowWidth=0)), "window"),
    "window differs": (one(put(WindowCenter=9)), "window"),
    "lossy without ratio": (one(drop("LossyImageCompressionRatio")), "lossy_ratio"),
    "lossy hidden": (every(put(LossyImageCompression="00")), "lossy_ratio"),
    # truth in tags
    "no contrast agent": (one(drop("ContrastBolusAgent")), "contrast_agent"),
    "another contrast agent": (every(put(ContrastBolusAgent="WATER")), "contrast_agent"),
    "coded contrast agent": (
        one(put(ContrastBolusAgentSequence=[phantoms.GADOLINIUM])),
        "contrast_agent",
    ),
    "7 T": (every(put(MagneticFieldStrength=7)), "magnetic_field_strength"),
    "no field strength": (one(drop("MagneticFieldStrength")), "magnetic_field_strength"),
    "other TR": (one(put(RepetitionTime=1)), "acquisition_parameters"),
    "other patient": (every(put(PatientName=SECRET)), "patient_and_study"),
    "other birth date": (one(put(PatientBirthDate="19700101")), "patient_and_study"),
    "other accession": (one(put(AccessionNumber="77")), "patient_and_study"),
    "other study": (one(put(StudyInstanceUID="1.2.3")), "patient_and_study"),
    "PRODUCT": (every(put(ContentQualification="PRODUCT")), "content_qualification"),
    "no qualification": (one(drop("ContentQualification")), "content_qualification"),
    "not synthetic": (one(drop("SyntheticData")), "synthetic_data"),
    "rescale": (one(put(RescaleSlope=1, RescaleIntercept=0)), "rescale"),
    "source's description": (every(put(SeriesDescription="t1_mpr")), "series_description"),
    "description differs": (one(put(SeriesDescription="x")), "series_description"),
    # identity and references
    "same UID twice": (same_uid, "unique_uids"),
    "UID of the source": (one(take_source_uid), "unique_uids"),
    "series UID of the source": (every(take_source_series), "unique_uids"),
    "other series UID": (one(put(SeriesInstanceUID="1.2.3")), "unique_uids"),
    "other UID in the file meta": (
        one(lambda d: setattr(d.file_meta, "MediaStorageSOPInstanceUID", "1.2.3")),
        "unique_uids",
    ),
    "numbers swapped": (swap_numbers, "instance_order"),
    "reference elsewhere": (one(foreign_reference), "references"),
    "too few references": (one(fewer_references), "references"),
    "vendor block": (one(vendor_block), "foreign_private_groups"),
    "forged provenance": (one(forge), "provenance"),
    "no provenance in the first": (
        lambda paths: phantoms.edit(paths[0], lambda d: d.remove_private_tags()),
        "provenance",
    ),
    "no provenance": (one(lambda d: d.remove_private_tags()), "provenance"),
    "provenance of another job": (every(changed_document(job_id="18")), "provenance"),
    "provenance of another series": (
        one(changed_document(derived_series_uid="1.2.3")),
        "provenance",
    ),
    "other figures": (every(changed_document(quality={"blob_z": 1.0})), "provenance"),
    "no hash of the pixels": (every(changed_document(result_sha256="")), "result_hash"),
    # what the pixels are said to be
    "another class": (
        every(put(SOPClassUID="1.2.840.10008.5.1.4.1.1.7")),
        "pixel_description",
    ),
    "another class in the file meta": (
        one(lambda d: setattr(d.file_meta, "MediaStorageSOPClassUID", "1.2.840.10008.5.1.4.1.1.7")),
        "pixel_description",
    ),
    "another modality": (one(put(Modality="CT")), "pixel_description"),
    "shown inverted": (one(put(PhotometricInterpretation="MONOCHROME1")), "pixel_description"),
    "signed": (one(put(PixelRepresentation=1)), "pixel_description"),
    "bits shifted": (one(put(HighBit=15, BitsStored=12)), "pixel_description"),
    # pixels and grid
    "pixels cut": (one(short_pixels), "pixel_data"),
    "no pixels": (one(drop("PixelData")), "pixel_data"),
    "pixels beyond BitsStored": (one(beyond_bits), "pixel_data"),
    "constant": (every(constant), "pixel_data"),
    "one pixel changed": (one(other_pixel), "result_hash"),
    "turned": (one(turn), "orientation"),
    "turned everywhere": (every(turn), "orientation"),
    "other PixelSpacing": (one(put(PixelSpacing=[1, 1])), "in_plane_grid"),
    "end missing": (unlink(11), "slice_count"),
    "end not covered": (unlink(0), "field_of_view"),
    "shifted by a pixel": (every(moved(0.6, axis=0)), "field_of_view"),
    "shifted along the normal": (every(moved(-0.7)), "field_of_view"),
    "one pixel too large": (every(put(PixelSpacing=[0.55, 0.625])), "field_of_view"),
    # nothing to look at
    "missing FrameOfReferenceUID": (one(drop("FrameOfReferenceUID")), "required_attributes"),
    "missing position": (one(drop("ImagePositionPatient")), "required_attributes"),
    "position of two numbers": (one(put(ImagePositionPatient=[1, 2])), "required_attributes"),
    "no DICOM": (lambda paths: paths[2].write_bytes(b"x"), "readable"),
    "nothing": (list.clear, "readable"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damage_is_named_by_its_rule(name, series):
    source, derived, made = series
    damage, rule = DAMAGE[name]

    damage(derived)
    findings = check(derived, source, made)

    assert rule in rules_of(findings)
    assert not any(SECRET in finding.message for finding in findings)


def test_a_source_that_cannot_be_read_is_a_finding(series, tmp_path):
    _, derived, made = series

    (finding,) = check(derived, [tmp_path / "gone.dcm"], made)

    assert finding.rule == "source_readable"
    assert "send the series again" in finding.next_step


def test_findings_name_the_instance_and_the_attribute(series):
    source, derived, made = series
    phantoms.edit(derived[4], put(SliceThickness=3))

    (finding,) = check(derived, source, made)

    uid = pydicom.dcmread(derived[4]).SOPInstanceUID
    assert finding.message == f"SliceThickness of {uid} is 3 mm, measured 1.5000 mm"
    assert "report the rule's name" in finding.next_step


def test_contrast_that_no_source_names_is_refused(tmp_path):
    phantom = phantoms.corner_series(tmp_path / "in")
    derived = phantoms.derive(read_series(phantom.paths), tmp_path / "out")
    assert check(derived.written.paths, phantom.paths, derived.provenance) == []

    every(put(ContrastBolusAgent="Gadobutrol"))(derived.written.paths)

    findings = check(derived.written.paths, phantom.paths, derived.provenance)
    assert rules_of(findings) == {"contrast_agent"}


def test_a_source_of_research_quality_stays_research(tmp_path):
    phantom = phantoms.corner_series(tmp_path / "in", ContentQualification="RESEARCH")
    recipe = Recipe(content_qualification="PRODUCT", synthetic_data=False)

    derived = phantoms.derive(read_series(phantom.paths), tmp_path / "out", recipe=recipe)

    assert check(derived.written.paths, phantom.paths, derived.provenance) == []
    every(put(ContentQualification="PRODUCT", SyntheticData="YES"))(derived.written.paths)
    findings = check(derived.written.paths, phantom.paths, derived.provenance)
    assert rules_of(findings) == {"content_qualification", "synthetic_data"}


def test_a_lossy_source_of_unknown_ratio_may_go_out(tmp_path):
    phantom = phantoms.corner_series(tmp_path / "in", LossyImageCompression="01")

    derived = phantoms.derive(read_series(phantom.paths), tmp_path / "out")

    assert check(derived.written.paths, phantom.paths, derived.provenance) == []


def test_spacing_between_slices_may_be_absent(series):
    source, derived, made = series
    every(drop("SpacingBetweenSlices"))(derived)

    assert check(derived, source, made) == []


def test_a_true_pixel_value_range_may_stand(series):
    source, derived, made = series
    for path in derived:
        stored = pydicom.dcmread(path).pixel_array
        phantoms.edit(path, add_range(int(stored.min()), int(stored.max())))

    assert check(derived, source, made) == []


def test_a_number_that_is_none_counts_as_missing():
    dataset = Dataset()
    dataset.add_new(0x00180050, "LO", "thick")
    assert values(dataset, "SliceThickness") == []

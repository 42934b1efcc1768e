"""Contrast, body part, field strength, and the evidence for refusals."""

import pytest

from dicom_node.assembly import judge, summarise
from dicom_node.settings import Settings
from tests.dicom_node.slices import ENHANCED, slice_at, stack


@pytest.mark.parametrize(
    ("header", "contrast"),
    [
        ({}, "T1"),  # MPRAGE
        ({"InversionTime": None, "SeriesDescription": "mprage"}, "T1"),
        ({"RepetitionTime": 9000, "EchoTime": 120, "InversionTime": 2500}, "FLAIR"),
        ({"ScanningSequence": ["SE", "IR"], "InversionTime": 150, "EchoTime": 30}, "unknown"),
        ({"ScanningSequence": "SE", "RepetitionTime": 500, "EchoTime": 12}, "T1"),
        ({"ScanningSequence": "SE", "RepetitionTime": 2300, "EchoTime": 22}, "PD"),
        ({"ScanningSequence": "SE", "RepetitionTime": 4500, "EchoTime": 100}, "T2"),
        ({"ScanningSequence": "SE", "RepetitionTime": 1200, "EchoTime": 20}, "unknown"),
        ({"ScanningSequence": "EP", "EchoTime": 30}, "T2*"),
        ({"ScanningSequence": ["SE", "EP"], "EchoTime": 80}, "T2"),
        ({"ScanningSequence": "GR", "RepetitionTime": 25, "EchoTime": 5, "FlipAngle": 30}, "T1"),
        ({"ScanningSequence": "GR", "RepetitionTime": 25, "EchoTime": 5, "FlipAngle": 4}, "PD"),
        ({"ScanningSequence": "GR", "RepetitionTime": 600, "EchoTime": 20}, "T2*"),
        ({"ScanningSequence": "GR", "SequenceVariant": "SS", "RepetitionTime": 5}, "unknown"),
        ({"RepetitionTime": None, "SeriesDescription": "AX T1 FLAIR"}, "T1"),
        ({"RepetitionTime": None, "SeriesDescription": "sag T2 FLAIR"}, "FLAIR"),
        ({"RepetitionTime": None, "SeriesDescription": "T2* hemo"}, "T2*"),
        ({"RepetitionTime": None, "SeriesDescription": "t2_tse_tra"}, "T2"),
        ({"RepetitionTime": None, "ProtocolName": "PDw SE"}, "PD"),
        ({"RepetitionTime": None, "SeriesDescription": "t10 speed"}, "unknown"),
        ({"RepetitionTime": None, "AcquisitionContrast": "PROTON_DENSITY"}, "PD"),
        ({"RepetitionTime": None, "ImageType": ["ORIGINAL", "PRIMARY", "T2"]} | ENHANCED, "T2"),
        ({"RepetitionTime": "fast"}, "unknown"),
    ],
)
def test_the_contrast_comes_from_the_timing_else_from_the_names(header, contrast):
    changes = {"InversionTime": None} if "ScanningSequence" in header else {}

    assert summarise(stack(range(3), **changes | header)).contrast == contrast


@pytest.mark.parametrize(
    ("header", "part"),
    [
        ({"BodyPartExamined": "HEAD"}, "head"),
        ({"BodyPartExamined": "KNEE"}, "knee"),
        ({"BodyPartExamined": "n.a."}, "unknown"),
        ({"BodyPartExamined": None}, "unknown"),
        ({"BodyPartExamined": None, "SeriesDescription": "T1 brain"}, "head"),
        ({"BodyPartExamined": None, "SeriesDescription": "t1_vibe_abdomen"}, "abdomen"),
        ({"BodyPartExamined": None, "ProtocolName": "L-SPINE"}, "spine"),
        ({"BodyPartExamined": None, "SeriesDescription": "hippocampus"}, "unknown"),
        ({"BodyPartExamined": "BRAIN", "SeriesDescription": "t1 neck coil"}, "head"),
    ],
)
def test_the_body_part_is_stated_or_at_least_not_contradicted(header, part):
    assert summarise(stack(range(3), **header)).body_part == part


@pytest.mark.parametrize(
    ("stated", "tesla"),
    [(1.5, 1.5), (15000, 1.5), ("1.494", 1.494), (None, None), ("", None), (0, None)],
)
def test_the_field_strength_is_in_tesla_and_may_be_absent(stated, tesla):
    summary = summarise(stack(range(3), MagneticFieldStrength=stated))

    assert summary.field_strength_t == (tesla if tesla is None else pytest.approx(tesla))


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"private_creators": ["DICOM-NODE AI-SR"]}, "private creator DICOM-NODE AI-SR"),
        ({"ImageType": ["DERIVED", "SECONDARY", "OTHER", "AI_SR"]}, "ImageType AI_SR"),
        (
            {"Manufacturer": "DICOM-NODE", "ManufacturerModelName": "AI-SR"},
            "our own output (Manufacturer DICOM-NODE)",
        ),
        ({"SeriesDescription": "3-PLANE LOC"}, "a localizer (the description says '3-plane')"),
        ({"SeriesDescription": "AX LOC"}, "a localizer (the description says 'loc')"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "ImageType LOCALIZER"),
        ({"SeriesDescription": "gre_field_mapping_2mm"}, "calibration of the scanner"),
        ({"SeriesDescription": "ASSET Calibration"}, "(the description says 'calib')"),
        ({"ProtocolName": "tfl_B1map"}, "(the description says 'b1map')"),
        ({"SeriesDescription": "Cal Head 24"}, "(the description says 'cal')"),
        ({"SeriesDescription": "Ref Scan"}, "(the description says 'ref scan')"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "PHASE MAP"]}, "ImageType PHASE MAP"),
        ({"ComplexImageComponent": "PHASE"}, "ComplexImageComponent PHASE"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]}, "ImageType MOSAIC"),
        ({"ImageType": ["DERIVED", "PRIMARY", "MPR"]}, "ImageType DERIVED/PRIMARY/MPR"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "in colour (RGB)"),
        ({"DiffusionBValue": 1000.0}, "b value 1000"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "PROJECTION IMAGE"]}, "derived, not acquired"),
        ({"SyntheticData": "YES"}, "derived, not acquired (SyntheticData YES)"),
        ({"PhotometricInterpretation": "MONOCHROME1"}, "expects of MR (MONOCHROME1)"),
        ({"NumberOfFrames": 3}, "expects of MR (3 frames in a classic image)"),
        ({"BitsAllocated": 32}, "expects of MR (32 bits)"),
        ({"AngioFlag": "Y"}, "contrast is unknown, not T1"),
        ({"AcquisitionContrast": "DIFFUSION"}, "AcquisitionContrast DIFFUSION"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "DIFFUSION"]}, "ImageType DIFFUSION"),
        (
            {"ScanningSequence": "EP", "SeriesDescription": "ep2d_dti"},
            "the description says 'dti'",
        ),
        ({"NumberOfTemporalPositions": 5}, "multi-volume series (5 images"),
        ({"Modality": "CT"}, "the modality is CT"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "Secondary Capture Image Storage"),
    ],
)
def test_what_no_rule_may_take_is_skipped_with_its_evidence(header, reason):
    verdict = judge(stack(range(20), **header), Settings())

    assert verdict.event == "skip"
    assert reason in verdict.reason


@pytest.mark.parametrize(
    "name",
    ["Ax T1 ASSET", "t1 mprage cervical cut", "T1 calcarine", "T1 stereotactic reference scan"],
)
def test_a_word_that_only_looks_like_a_calibration_is_none(name):
    assert summarise(stack(range(3), SeriesDescription=name)).calibration == ""


def test_two_echo_times_in_one_stack_are_a_multi_echo_series():
    both = stack(range(20)) + [slice_at(i, 50 + i, EchoTime=9.0) for i in range(10)]

    assert "2 echo times" in judge(both, Settings()).reason


def test_every_position_twice_is_a_multi_volume_series():
    both = stack(range(20)) + [slice_at(i, 50 + i) for i in range(20)]

    assert "2 images at every position" in judge(both, Settings()).reason


def test_no_reason_quotes_free_text_of_the_scanner():
    secret = {"SeriesDescription": "DOE^JOHN scout knee", "BodyPartExamined": None}

    assert "DOE" not in judge(stack(range(20), **secret), Settings()).reason

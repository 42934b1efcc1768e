"""Each row of the functional group table, on the real Enhanced series p04 or a small fake."""

import pydicom
import pytest
from pydicom.dataset import Dataset

from sr_engine.dicom import enhanced
from sr_engine.dicom.headers import read_headers
from sr_engine.dicom.reader import read_series
from sr_engine.errors import HeaderError

# (group, attribute) of a TABLE row -> classic value in the first frame of p04.
P04 = {
    ("PixelMeasuresSequence", "PixelSpacing", "PixelSpacing"): [2, 2],
    ("PixelMeasuresSequence", "SliceThickness", "SliceThickness"): 2,
    ("PixelMeasuresSequence", "SpacingBetweenSlices", "SpacingBetweenSlices"): None,
    ("PlanePositionSequence", "ImagePositionPatient", "ImagePositionPatient"): [
        -100.424,
        -156.094,
        113.224,
    ],
    ("PlaneOrientationSequence", "ImageOrientationPatient", "ImageOrientationPatient"): [
        *(0, 1, 0),
        *(0, 0, -1),
    ],
    ("MRTimingAndRelatedParametersSequence", "RepetitionTime", "RepetitionTime"): 1800,
    ("MRTimingAndRelatedParametersSequence", "FlipAngle", "FlipAngle"): 9,
    ("MRTimingAndRelatedParametersSequence", "EchoTrainLength", "EchoTrainLength"): 1,
    ("MREchoSequence", "EffectiveEchoTime", "EchoTime"): 2.41,
    ("MRModifierSequence", "InversionTimes", "InversionTime"): 900,
    ("MRModifierSequence", "InversionRecovery", "ScanOptions"): None,
    ("MRImageFrameTypeSequence", "FrameType", "ImageType"): ["ORIGINAL", "PRIMARY", "M", "NONE"],
    ("MRImageFrameTypeSequence", "ComplexImageComponent", "ComplexImageComponent"): "MAGNITUDE",
    ("FrameAnatomySequence", "AnatomicRegionSequence", "BodyPartExamined"): "BRAIN",
    ("FrameAnatomySequence", "FrameLaterality", "Laterality"): None,
    ("FrameVOILUTSequence", "WindowCenter", "WindowCenter"): 515,
    ("FrameVOILUTSequence", "WindowWidth", "WindowWidth"): 1039,
    ("FrameVOILUTSequence", "VOILUTFunction", "VOILUTFunction"): None,
    ("PixelValueTransformationSequence", "RescaleSlope", "RescaleSlope"): 1,
    ("PixelValueTransformationSequence", "RescaleIntercept", "RescaleIntercept"): 0,
    ("MRAveragesSequence", "NumberOfAverages", "NumberOfAverages"): 1,
    ("MRImagingModifierSequence", "PixelBandwidth", "PixelBandwidth"): 150,
    ("MRImagingModifierSequence", "TransmitterFrequency", "ImagingFrequency"): 123.262417,
    ("MRReceiveCoilSequence", "ReceiveCoilName", "ReceiveCoilName"): "HeadNeck_64",
    ("MRTransmitCoilSequence", "TransmitCoilName", "TransmitCoilName"): "Body",
    ("MRFOVGeometrySequence", "PercentSampling", "PercentSampling"): 100,
    ("MRFOVGeometrySequence", "PercentPhaseFieldOfView", "PercentPhaseFieldOfView"): 100,
    (
        "MRFOVGeometrySequence",
        "InPlanePhaseEncodingDirection",
        "InPlanePhaseEncodingDirection",
    ): "ROW",
    ("MRFOVGeometrySequence", "MRAcquisitionFrequencyEncodingSteps", "AcquisitionMatrix"): [
        *(0, 128),
        *(128, 0),
    ],
    ("MRDiffusionSequence", "DiffusionBValue", "DiffusionBValue"): None,
    (
        "FrameContentSequence",
        "FrameAcquisitionDateTime",
        "AcquisitionDateTime",
    ): "20220711120517.042500",
    ("FrameContentSequence", "FrameAcquisitionDateTime", "AcquisitionDate"): "20220711",
    ("FrameContentSequence", "FrameAcquisitionDateTime", "AcquisitionTime"): "120517.042500",
    ("FrameContentSequence", "FrameAcquisitionNumber", "AcquisitionNumber"): 1,
    ("FrameContentSequence", "TemporalPositionIndex", "TemporalPositionIdentifier"): 1,
}


@pytest.mark.parametrize("row", enhanced.TABLE, ids=lambda row: f"{row.group}-{row.keyword}")
def test_a_functional_group_becomes_its_classic_attribute(row, shared_series):
    (dataset,) = read_headers([shared_series("p04")])

    first = enhanced.flatten(dataset)[0]

    expected = P04[row.group, row.attribute, row.keyword]
    value = first.get(row.keyword)
    assert (list(value) if isinstance(expected, list) else value) == expected


def test_p04_has_the_classic_terms_of_its_pulse_sequence(shared_series):
    (dataset,) = read_headers([shared_series("p04")])

    first = enhanced.flatten(dataset)[0]

    assert list(first.ScanningSequence) == ["GR", "IR"]
    assert first.SequenceVariant == "MP"
    assert first.SequenceName == "*tfl3d1_16ns"
    assert first.ImagedNucleus == "1H"
    assert first.MagneticFieldStrength == 3
    assert first.PatientPosition == "HFS"
    assert not any(tag.is_private for tag in first.keys())
    assert "PerFrameFunctionalGroupsSequence" not in first


def group(**values):
    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return [item]


def enhanced_dataset(shared=(), frames=((),), **root):
    dataset = Dataset()
    dataset.SOPInstanceUID = "1.2.3"
    dataset.NumberOfFrames = len(frames)
    for keyword, value in root.items():
        setattr(dataset, keyword, value)
    dataset.SharedFunctionalGroupsSequence = group(**dict(shared))
    dataset.PerFrameFunctionalGroupsSequence = [group(**dict(frame))[0] for frame in frames]
    return dataset


def test_the_group_of_a_frame_wins_over_the_shared_one_and_the_root():
    dataset = enhanced_dataset(
        shared={"MREchoSequence": group(EffectiveEchoTime=3.0)},
        frames=[{"MREchoSequence": group(EffectiveEchoTime=5.0)}, {}],
        EchoTime=1.0,
    )

    first, second = enhanced.flatten(dataset)

    assert (first.EchoTime, second.EchoTime) == (5.0, 3.0)
    assert (first.InstanceNumber, second.InstanceNumber) == (1, 2)
    assert dataset.EchoTime == 1.0


@pytest.mark.parametrize(
    ("shared", "keyword", "expected"),
    [
        ({"FrameAnatomySequence": group(FrameLaterality="L")}, "Laterality", "L"),
        (
            {"PixelMeasuresSequence": group(SpacingBetweenSlices=1.25)},
            "SpacingBetweenSlices",
            1.25,
        ),
        ({"MRDiffusionSequence": group(DiffusionBValue=800.0)}, "DiffusionBValue", 800.0),
        (
            {
                "MRModifierSequence": group(
                    InversionRecovery="NO", PartialFourier="YES", FlowCompensation="VELOCITY"
                )
            },
            "ScanOptions",
            ["PFP", "FC"],
        ),
        (
            {
                "MRFOVGeometrySequence": group(
                    MRAcquisitionFrequencyEncodingSteps=256,
                    MRAcquisitionPhaseEncodingStepsInPlane=192,
                    InPlanePhaseEncodingDirection="COLUMN",
                )
            },
            "AcquisitionMatrix",
            [256, 0, 0, 192],
        ),
        (
            {"MRFOVGeometrySequence": group(MRAcquisitionFrequencyEncodingSteps=256)},
            "AcquisitionMatrix",
            None,
        ),
        ({"FrameAnatomySequence": group(AnatomicRegionSequence=[])}, "BodyPartExamined", None),
        ({"MRModifierSequence": group(InversionTimes=[800.0, 900.0])}, "InversionTime", None),
        (
            {"MRModifierSequence": group(InversionTimes=[800.0, 900.0], InversionRecovery="YES")},
            "InversionTime",
            800.0,
        ),
    ],
)
def test_rows_that_p04_does_not_show(shared, keyword, expected):
    (header,) = enhanced.flatten(enhanced_dataset(shared=shared))

    value = header.get(keyword)
    assert (list(value) if isinstance(expected, list) else value) == expected


@pytest.mark.parametrize(
    ("root", "scanning", "variant"),
    [
        ({"EchoPulseSequence": "SPIN"}, "SE", "NONE"),
        ({"EchoPulseSequence": "BOTH"}, ["SE", "GR"], "NONE"),
        ({"EchoPulseSequence": "GRADIENT", "EchoPlanarPulseSequence": "YES"}, ["GR", "EP"], "NONE"),
        ({}, "RM", "NONE"),
        ({"SegmentedKSpaceTraversal": "PARTIAL"}, "RM", "SK"),
        (
            {"SteadyStatePulseSequence": "FREE_PRECESSION", "OversamplingPhase": "2D"},
            "RM",
            ["SS", "OSP"],
        ),
    ],
)
def test_the_pulse_sequence_becomes_classic_terms(root, scanning, variant):
    (header,) = enhanced.flatten(enhanced_dataset(**root))

    assert (header.ScanningSequence, header.SequenceVariant) == (scanning, variant)


@pytest.mark.parametrize("frames", [0, 3])
def test_functional_groups_must_be_one_per_frame(frames):
    dataset = enhanced_dataset()
    dataset.NumberOfFrames = frames

    with pytest.raises(HeaderError, match="PerFrameFunctionalGroupsSequence of 1.2.3"):
        enhanced.flatten(dataset)


def test_pixel_value_transformation_is_applied_to_each_frame(shared_series, tmp_path):
    dataset = pydicom.dcmread(next(shared_series("p04").iterdir()))
    plain = read_series([shared_series("p04")]).volume.array
    for number, frame in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        frame.PixelValueTransformationSequence[0].RescaleSlope = 1 + number
    dataset.save_as(tmp_path / "scaled.dcm")

    scaled = read_series([tmp_path]).volume.array

    # Frame 1 is the leftmost slice; the normal of these sagittal planes points to the right.
    assert scaled[95].max() == plain[95].max() * 1
    assert scaled[0].max() == plain[0].max() * 96

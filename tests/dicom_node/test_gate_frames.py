"""An Enhanced image passes the gate like its classic twin; each damage is named by its rule."""

import pytest

from dicom_node.release_gate import check
from sr_engine.dicom.reader import read_series
from tests import phantoms
from tests.dicom_node.test_release_gate import (
    SECRET,
    drop,
    forge,
    other_pixel,
    put,
    rules_of,
    short_pixels,
)


@pytest.fixture
def enhanced(tmp_path):
    """Return a source's files, the Enhanced MR image derived from it and what the job says."""
    phantom = phantoms.corner_series(tmp_path / "source", "double-oblique")
    source = read_series(phantom.paths)
    derived = phantoms.derive(source, tmp_path / "out", kinds=["classic", "enhanced"])
    return phantom.paths, derived.outputs[1].paths, derived.provenance


def shared(**groups):
    """Return a change of attributes in functional groups that all frames share."""

    def change(dataset):
        for name, attributes in groups.items():
            group = dataset.SharedFunctionalGroupsSequence[0][name].value[0]
            for keyword, value in attributes.items():
                setattr(group, keyword, value)

    return change


def frame(number, **groups):
    def change(dataset):
        for name, attributes in groups.items():
            group = dataset.PerFrameFunctionalGroupsSequence[number][name].value[0]
            for keyword, value in attributes.items():
                setattr(group, keyword, value)

    return change


def swap_frames(dataset):
    frames = dataset.PerFrameFunctionalGroupsSequence
    frames[2].PlanePositionSequence, frames[3].PlanePositionSequence = (
        frames[3].PlanePositionSequence,
        frames[2].PlanePositionSequence,
    )


ENHANCED_DAMAGE = {
    "spacing": (
        shared(PixelMeasuresSequence={"SpacingBetweenSlices": 2}),
        "spacing_between_slices",
    ),
    "thickness": (shared(PixelMeasuresSequence={"SliceThickness": 9}), "slice_thickness"),
    "pixel spacing": (shared(PixelMeasuresSequence={"PixelSpacing": [1, 1]}), "field_of_view"),
    "orientation": (
        shared(PlaneOrientationSequence={"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}),
        "orientation",
    ),
    "rescale": (shared(PixelValueTransformationSequence={"RescaleSlope": 2}), "rescale"),
    "no derivation": (
        lambda d: delattr(d.SharedFunctionalGroupsSequence[0], "DerivationImageSequence"),
        "derivation_tags",
    ),
    "no evidence": (drop("SourceImageEvidenceSequence"), "derivation_tags"),
    "original": (
        shared(MRImageFrameTypeSequence={"FrameType": ["ORIGINAL", "PRIMARY", "M", "NONE"]}),
        "image_type",
    ),
    "echo time": (shared(MREchoSequence={"EffectiveEchoTime": 99.0}), "acquisition_parameters"),
    "window": (shared(FrameVOILUTSequence={"WindowWidth": 0}), "window"),
    "frame moved": (
        frame(4, PlanePositionSequence={"ImagePositionPatient": [0, 0, 0]}),
        "gap_in_stack",
    ),
    "frames swapped": (swap_frames, "instance_order"),
    "number twice": (
        frame(4, FrameContentSequence={"InStackPositionNumber": 4}),
        "duplicate_instance_number",
    ),
    "7 T": (put(MagneticFieldStrength=7), "magnetic_field_strength"),
    "other patient": (put(PatientName=SECRET), "patient_and_study"),
    "pixels": (other_pixel, "result_hash"),
    "pixels cut": (short_pixels, "pixel_data"),
    "frame of reference": (put(FrameOfReferenceUID="1.2.3"), "frame_of_reference"),
    "forged": (forge, "provenance"),
}


@pytest.mark.parametrize("orientation", phantoms.ORIENTATIONS)
def test_an_enhanced_image_passes_like_its_classic_twin(orientation, tmp_path):
    phantom = phantoms.corner_series(tmp_path / "in", orientation)

    derived = phantoms.derive(read_series(phantom.paths), tmp_path / "out", kinds=["enhanced"])

    assert check(derived.written.paths, phantom.paths, derived.provenance) == []


@pytest.mark.parametrize("name", ENHANCED_DAMAGE)
def test_a_damage_of_an_enhanced_image_is_named_by_its_rule(name, enhanced):
    source, (path,), made = enhanced
    damage, rule = ENHANCED_DAMAGE[name]
    assert check([path], source, made) == []

    phantoms.edit(path, damage)

    assert rule in rules_of(check([path], source, made))

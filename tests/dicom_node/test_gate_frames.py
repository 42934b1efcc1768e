"""An Enhanced image passes the gate like its classic twin; each damage is named by its rule."""

import shutil
from pathlib import Path

import pytest

from dicom_node.release_gate import IMAGE_RULES, check, check_companion
from sr_engine.dicom.kinds import COMPANIONS, FORMS
from sr_engine.dicom.reader import read_series
from tests import phantoms, variants
from tests.dicom_node.test_release_gate import (
    DAMAGE,
    SECRET,
    changed_document,
    drop,
    forge,
    other_pixel,
    put,
    rules_of,
    short_pixels,
)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Return a source's files, the Enhanced MR image derived from it and what the job says."""
    folder = tmp_path_factory.mktemp("frames")
    phantom = phantoms.corner_series(folder / "source", "double-oblique", **phantoms.CONTRAST)
    derived = phantoms.derive(read_series(phantom.paths), folder / "out", kinds=["enhanced"])
    return phantom.paths, derived.written.paths[0], derived.provenance


@pytest.fixture
def enhanced(good, tmp_path):
    """Return the same with a private copy of the image."""
    source, path, made = good
    return source, Path(shutil.copy(path, tmp_path)), made


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


def one_more_byte_pair(dataset):
    dataset.PixelData += bytes(2)


def swap_indices(dataset):
    first, second = (
        frame.FrameContentSequence[0] for frame in dataset.PerFrameFunctionalGroupsSequence[2:4]
    )
    first.DimensionIndexValues, second.DimensionIndexValues = (
        second.DimensionIndexValues,
        first.DimensionIndexValues,
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
    "no contrast agent": (drop("ContrastBolusAgent"), "contrast_agent"),
    "7 T": (put(MagneticFieldStrength=7), "magnetic_field_strength"),
    "other patient": (put(PatientName=SECRET), "patient_and_study"),
    "pixels": (other_pixel, "result_hash"),
    "pixels cut": (short_pixels, "pixel_data"),
    "frame of reference": (put(FrameOfReferenceUID="1.2.3"), "frame_of_reference"),
    "forged": (forge, "provenance"),
    "other figures": (changed_document(quality={"blob_z": 1.0}), "provenance"),
    # what only a multi-frame image has
    "original at the root": (
        put(ImageType=["ORIGINAL", "PRIMARY", "M", "NONE"]),
        "root_image_type",
    ),
    "another type at the root": (
        put(ImageType=["DERIVED", "PRIMARY", "T1", "RESAMPLED"]),
        "root_image_type",
    ),
    "no type at the root": (drop("ImageType"), "root_image_type"),
    "a frame more in words": (put(NumberOfFrames=13), "frame_count"),
    "more pixels than frames": (one_more_byte_pair, "frame_count"),
    "no dimensions": (drop("DimensionIndexSequence"), "frame_dimensions"),
    "indices swapped": (swap_indices, "frame_dimensions"),
    "two stacks": (frame(4, FrameContentSequence={"StackID": "2"}), "frame_dimensions"),
    "signed": (put(PixelRepresentation=1), "pixel_description"),
    "another class": (put(SOPClassUID="1.2.840.10008.5.1.4.1.1.4"), "pixel_description"),
}


def test_every_rule_has_a_damage_that_breaks_it():
    assert set(IMAGE_RULES) == {
        rule for _, rule in (*DAMAGE.values(), *ENHANCED_DAMAGE.values())
    } - {"readable", "required_attributes"}


@pytest.mark.parametrize("orientation", phantoms.ORIENTATIONS)
def test_an_enhanced_image_passes_like_its_classic_twin(orientation, tmp_path):
    phantom = phantoms.corner_series(tmp_path / "in", orientation)

    derived = phantoms.derive(read_series(phantom.paths), tmp_path / "out", kinds=["enhanced"])

    assert check(derived.written.paths, phantom.paths, derived.provenance) == []


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("stored", FORMS)
def test_a_coded_contrast_agent_passes_from_form_to_form(stored, form, tmp_path):
    agent = phantoms.GADOLINIUM if stored == "classic" else phantoms.ENHANCED_GADOLINIUM
    tags = {"ContrastBolusAgentSequence": [agent]}
    source = phantoms.corner_series(tmp_path / "in", **tags).paths
    if stored == "enhanced":
        source = [variants.write_enhanced(source, tmp_path / "1.dcm", **tags)]

    derived = phantoms.derive(read_series(source), tmp_path / "out", kinds=[form])

    assert check(derived.written.paths, source, derived.provenance, form) == []
    for path in derived.written.paths:
        phantoms.edit(path, drop("ContrastBolusAgentSequence"))
    assert rules_of(check(derived.written.paths, source, derived.provenance, form)) == {
        "contrast_agent"
    }


@pytest.mark.parametrize("name", ENHANCED_DAMAGE)
def test_a_damage_of_an_enhanced_image_is_named_by_its_rule(name, enhanced):
    source, path, made = enhanced
    damage, rule = ENHANCED_DAMAGE[name]
    assert check([path], source, made) == []

    phantoms.edit(path, damage)

    assert rule in rules_of(check([path], source, made))


@pytest.mark.parametrize("wanted", ["classic", "enhanced"])
def test_an_image_of_the_other_form_is_refused(wanted, tmp_path):
    phantom = phantoms.corner_series(tmp_path / "in")
    derived = phantoms.derive(
        read_series(phantom.paths), tmp_path / "out", kinds=["classic", "enhanced"]
    )
    files = {one.kind: one.paths for one in derived.outputs}
    (other,) = {"classic", "enhanced"} - {wanted}

    assert check(files[wanted], phantom.paths, derived.provenance, wanted) == []
    assert rules_of(check(files[other], phantom.paths, derived.provenance, wanted)) == {
        "pixel_description"
    }


@pytest.mark.parametrize("place", ["before", "between"])
def test_frames_that_are_no_slices_of_the_volume_hold_nothing(place, tmp_path):
    """An Enhanced source with phase frames and a scout inside: image and companions pass."""
    magnitude = phantoms.corner_series(tmp_path / "in", "double-oblique").paths
    phase = variants.add_copies(magnitude, "phase", variants.setting(ComplexImageComponent="PHASE"))
    scout = variants.add_copy(magnitude[5], "scout", variants.turned)
    if place == "before":
        frames = [scout, *phase, *magnitude]
    else:
        frames = [one for pair in zip(magnitude, phase, strict=True) for one in pair] + [scout]
    source = [variants.write_enhanced(frames, tmp_path / "enhanced" / "1.dcm")]
    kinds = [f"{form}{name}" for form in FORMS for name in ("", *(f"+{one}" for one in COMPANIONS))]

    derived = phantoms.derive(read_series(source), tmp_path / "out", kinds=kinds)

    files = {one.kind: one.paths for one in derived.outputs}
    found = {
        kind: check(paths, source, derived.provenance, kind)
        if kind in FORMS
        else check_companion(kind, paths, files[kind.partition("+")[0]], source)
        for kind, paths in files.items()
    }
    assert found == dict.fromkeys(kinds, [])

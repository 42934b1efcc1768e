"""Companions of the image: what they say is true, whatever the source looks like."""

import subprocess
from dataclasses import replace
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from highdicom.ko import KeyObjectSelectionDocument
from highdicom.sr import EnhancedSR
from PIL import Image

from sr_engine.dicom.kinds import COMPANIONS, FORMS
from sr_engine.dicom.provenance import from_dataset
from sr_engine.dicom.reader import read_series
from sr_engine.errors import WriteError
from sr_engine.recipe import Recipe
from tests import phantoms

KINDS = [*FORMS, *(f"{form}+{name}" for form in FORMS for name in COMPANIONS)]

OF_CLASSIC = ["classic", *(f"classic+{name}" for name in COMPANIONS)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("companions")
    source = read_series(phantoms.corner_series(folder / "in", "double-oblique").paths)
    volume = phantoms.finer(source, (3, 2, 1))
    return phantoms.derive(source, folder / "out", volume=volume, kinds=KINDS)


def datasets(made, kind):
    (written,) = (one for one in made.outputs if one.kind == kind)
    return [pydicom.dcmread(path) for path in written.paths]


def along(dataset, frame=None):
    """Return the place of a slice along the normal, in mm."""
    groups = dataset.PerFrameFunctionalGroupsSequence[frame - 1] if frame else None
    place = groups.PlanePositionSequence[0] if frame else dataset
    shared = dataset.SharedFunctionalGroupsSequence[0] if frame else None
    plane = shared.PlaneOrientationSequence[0] if frame else dataset
    row, column = np.reshape(np.array(plane.ImageOrientationPatient, float), (2, 3))
    return float(np.array(place.ImagePositionPatient, float) @ np.cross(row, column))


@pytest.mark.parametrize("form", FORMS)
def test_the_spread_reads_back_in_units_of_the_scanner(form, made):
    (path,) = (one.paths[0] for one in made.outputs if one.kind == f"{form}+spread")

    volume = highdicom.imread(path).get_volume(apply_real_world_transform=True)

    expected = phantoms.finer(made.source, (3, 2, 1)).array / 32
    found = volume.array[::-1] if volume.affine[2, 0] < 0 else volume.array
    assert np.allclose(np.sort(found.ravel()), np.sort(expected.ravel()), atol=expected.max() / 6e4)
    assert volume.frame_of_reference_uid == made.source.frame_of_reference_uid


@pytest.mark.parametrize("form", FORMS)
def test_key_objects_pair_each_original_with_the_nearest_derived_slice(form, made):
    (dataset,) = datasets(made, f"{form}+key_objects")
    originals = {header.SOPInstanceUID: header for header in made.source.headers}
    derived = {one.SOPInstanceUID: one for one in datasets(made, form)}

    document = KeyObjectSelectionDocument.from_dataset(dataset)
    named = [one.ReferencedSOPSequence[0] for one in document.content.get_references()]

    assert [one.ReferencedSOPInstanceUID for one in named[::2]] == list(originals)
    for original, other in zip(named[::2], named[1::2], strict=True):
        here = along(originals[original.ReferencedSOPInstanceUID])
        image, frame = derived[other.ReferencedSOPInstanceUID], other.get("ReferencedFrameNumber")
        assert (frame is not None) == (form == "enhanced")
        assert along(image, frame) == pytest.approx(here, abs=0.01)  # a third of the distance
    assert "12 pairs, at most 0.00 mm apart" in dataset.ContentSequence[-25].TextValue


@pytest.mark.parametrize("form", FORMS)
def test_presentation_states_name_the_counterpart_on_every_slice(form, made):
    of_derived, of_original = datasets(made, f"{form}+presentation")

    labels = {
        one.ReferencedImageSequence[0].ReferencedSOPInstanceUID: (
            one.TextObjectSequence[0].UnformattedTextValue
        )
        for one in of_original.GraphicAnnotationSequence
    }

    # Three derived slices lie on each original one; the middle one at its level.
    assert [labels[header.SOPInstanceUID] for header in made.source.headers] == [
        f"level of AI-SR image {3 * index + 2}, 0.00 mm away" for index in range(12)
    ]
    assert len(of_derived.GraphicAnnotationSequence) == 36
    first, second = (
        one.TextObjectSequence[0].UnformattedTextValue
        for one in list(of_derived.GraphicAnnotationSequence)[:2]
    )
    assert (first, second) == (
        "level of original image 1, 0.50 mm away",
        "level of original image 1, 0.00 mm away",
    )
    assert of_derived.PresentationCreationDate == of_derived.SeriesDate
    assert "RescaleSlope" not in of_derived


@pytest.mark.parametrize("form", FORMS)
def test_dcmtk_shows_an_image_as_its_state_says(form, made, tmp_path):
    if not Path("/usr/bin/dcmp2pgm").is_file():
        pytest.skip("dcmtk (dcmp2pgm) is not installed")
    files = {one.kind: one.paths for one in made.outputs}
    image = files[form][0]
    stated = pydicom.dcmread(files[f"{form}+presentation"][0])
    ours = stated.SoftcopyVOILUTSequence[0]
    pixels = pydicom.dcmread(image).pixel_array
    first = pixels if pixels.ndim == 2 else pixels[0]
    as_written = float(ours.WindowCenter), float(ours.WindowWidth)
    of_this_slice = float(first.mean()), float(np.ptp(first))  # no image states that one
    for centre, width in (as_written, of_this_slice):
        ours.WindowCenter, ours.WindowWidth = f"{centre:.2f}", f"{width:.2f}"
        stated.save_as(tmp_path / "state.dcm")

        told = shown_by_dcmtk(tmp_path / "state.dcm", image, tmp_path / "shown.pgm")

        assert 'text 1: "level of original image 1, 0.50 mm away"' in told
        with Image.open(tmp_path / "shown.pgm") as picture:
            found = np.asarray(picture, float)
        greys = np.clip(((first - (centre - 0.5)) / (width - 1) + 0.5) * 255, 0, 255)
        assert np.abs(found - greys).max() <= 1  # PS3.3 C.11.2.1.2.1, rounded
    assert np.ptp(found) > 200  # the last window is one in which much is to be seen


def shown_by_dcmtk(state: Path, image: Path, picture: Path) -> str:
    """Write what dcmtk makes of the first frame under the state, and return what it says."""
    command = ["/usr/bin/dcmp2pgm", "-v", "-p", state, image, picture]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("slopes", "states", "slope"), [((2.0, 2.0), 2, 2.0), ((2.0, 3.0), 1, None)]
)
def test_a_rescale_reaches_the_state_of_the_originals_if_there_is_one(
    slopes, states, slope, tmp_path
):
    phantom = phantoms.corner_series(tmp_path / "in")
    for place, path in enumerate(phantom.paths):
        value = slopes[place % 2]
        phantoms.edit(path, lambda d, v=value: d.update({"RescaleSlope": v, "RescaleIntercept": 1}))
    kinds = ["classic", "classic+presentation"]

    made = phantoms.derive(read_series(phantom.paths), tmp_path / "out", kinds=kinds)

    found = datasets(made, "classic+presentation")
    assert len(found) == states
    assert [float(one.RescaleSlope) for one in found[1:]] == ([slope] if slope else [])


def test_the_report_states_the_figures_and_the_verdict(tmp_path):
    source = read_series(phantoms.corner_series(tmp_path / "in").paths)
    findings = ("The three axes disagree.", "Only 90 % of the head shows in the result.")
    quality = {"residual_over_noise": 0.91, "coverage": 0.995, "blob_slice": 3.0}

    made = phantoms.derive(
        source,
        tmp_path / "out",
        kinds=["classic", "classic+report"],
        findings=findings,
        quality=quality,
    )

    (dataset,) = datasets(made, "classic+report")
    (group,) = EnhancedSR.from_dataset(dataset).content.get_image_measurement_groups()
    figures = {one.name.meaning: one.value for one in group.get_measurements()}
    assert figures == {
        "Residual to measured data over noise": 0.91,
        "Head shown in the result": 99.5,
    }
    (verdict,) = group.get_qualitative_evaluations()
    assert verdict.value.meaning == "Doubtful"
    texts = [one.TextValue for one in group[0].ContentSequence if one.ValueType == "TEXT"]
    assert texts[-2:] == list(findings)
    assert dataset.CompletionFlag == "COMPLETE"


def test_every_companion_carries_the_images_provenance_and_study(made):
    image = datasets(made, "classic")[0]
    numbers, uids = set(), set()
    for written in made.outputs:
        (first, *_) = datasets(made, written.kind)
        assert from_dataset(first) == from_dataset(image)
        assert from_dataset(first).series[written.kind] == first.SeriesInstanceUID
        for keyword in ("PatientName", "PatientID", "StudyInstanceUID", "StudyDate"):
            assert first[keyword].value == image[keyword].value
        numbers.add(int(first.SeriesNumber))
        uids.add(first.SeriesInstanceUID)
    assert len(numbers) == len(uids) == len(KINDS)


def test_no_two_generations_or_kinds_have_one_series_number(tmp_path):
    source = read_series(phantoms.corner_series(tmp_path / "in").paths)
    numbers = []
    for generation in (1, 2, 9, 10, 11, 12, 21, 31, 101):
        job = replace(phantoms.JOB, generation=generation)
        folder = tmp_path / str(generation)
        made = phantoms.derive(source, folder, job=job, kinds=["classic", *KINDS])
        numbers += [int(datasets(made, kind)[0].SeriesNumber) for kind in KINDS]

    assert len(set(numbers)) == len(numbers)
    assert not set(numbers) & set(range(300, 400))  # of the next series of the source


def test_the_observer_is_the_same_device_in_every_document(made, tmp_path):
    source = read_series(phantoms.corner_series(tmp_path / "in").paths)
    other = phantoms.derive(source, tmp_path / "out", kinds=OF_CLASSIC)

    uids = {
        item.UID
        for documents in (made, other)
        for kind in ("classic+report", "classic+key_objects")
        for item in datasets(documents, kind)[0].ContentSequence
        if item.ConceptNameCodeSequence[0].CodeValue == "121012"  # Device Observer UID
    }

    assert len(uids) == 1


def test_twice_the_same_job_gives_the_same_bytes(tmp_path):
    source = read_series(phantoms.corner_series(tmp_path / "in").paths)

    first, second = (
        phantoms.derive(source, tmp_path / name, kinds=OF_CLASSIC).outputs for name in "ab"
    )

    for one, other in zip(first, second, strict=True):
        assert [path.read_bytes() for path in one.paths] == [
            path.read_bytes() for path in other.paths
        ], one.kind


@pytest.mark.parametrize(
    "tags",
    [
        {"PatientName": "山田^太郎", "SpecificCharacterSet": "ISO_IR 192"},
        {"PatientName": "a" * 80, "PatientSex": "X", "PatientBirthDate": "unknown"},
        {"StudyDate": "12.03.2020", "StudyTime": "noon", "AccessionNumber": "x" * 30},
        {"BodyPartExamined": "", "SeriesDescription": "", "SeriesNumber": None},
        {"WindowCenter": None, "WindowWidth": None, "InstanceNumber": None},
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_odd_headers_stop_no_companion(tags, tmp_path):
    phantom = phantoms.corner_series(tmp_path / "in")
    for path in phantom.paths:
        phantoms.edit(path, lambda d: d.update(tags))
    source = read_series(phantom.paths)

    made = phantoms.derive(source, tmp_path / "out", kinds=OF_CLASSIC)

    for kind in OF_CLASSIC:
        for dataset in datasets(made, kind):
            for keyword in ("PatientName", "PatientSex", "StudyDate", "AccessionNumber"):
                stated = source.headers[0][keyword].value
                assert str(dataset[keyword].value) == str(stated), (kind, keyword)


def test_an_enhanced_source_is_named_by_its_frames(tmp_path, shared_series):
    source = read_series([shared_series("p06")])
    kinds = ["classic", "classic+key_objects"]

    made = phantoms.derive(source, tmp_path, volume=source.volume, kinds=kinds)

    if source.multiframe:
        (dataset,) = datasets(made, "classic+key_objects")
        images = [one for one in dataset.ContentSequence if one.ValueType == "IMAGE"]
        frames = [one.ReferencedSOPSequence[0].ReferencedFrameNumber for one in images[::2]]
        assert sorted(frames) == list(range(1, len(frames) + 1))


def test_no_spread_is_no_map(tmp_path):
    source = read_series(phantoms.corner_series(tmp_path / "in").paths)

    with pytest.raises(WriteError, match="has no spread to write"):
        phantoms.derive(source, tmp_path / "out", kinds=["classic", "classic+spread"], spread=None)


def test_one_axis_has_no_spread_and_no_figure_of_it(tmp_path):
    """A map of zeros, or a disagreement of 0, would look like certainty."""
    source = read_series(phantoms.corner_series(tmp_path / "in").paths)
    recipe, quality = Recipe(triaxial=False), {"spread_p99": 0.0, "coverage": 1.0}

    with pytest.raises(WriteError, match="has no spread to write"):
        phantoms.derive(
            source, tmp_path / "map", kinds=["classic", "classic+spread"], recipe=recipe
        )
    for triaxial in (True, False):
        made = phantoms.derive(
            source,
            tmp_path / str(triaxial),
            kinds=["classic", "classic+report"],
            recipe=replace(recipe, triaxial=triaxial),
            quality=quality,
        )
        told = str(pydicom.dcmread(made.outputs[1].paths[0]))
        assert "Head shown in the result" in told
        assert ("Disagreement of three axes" in told) == triaxial

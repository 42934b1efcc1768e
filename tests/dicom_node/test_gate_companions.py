"""What goes out beside an image passes the gate; each damage is named by its rule."""

import shutil

import pytest

from dicom_node.release_gate import COMPANION_RULES as RULES
from dicom_node.release_gate import check_companion
from dicom_node.worker.outputs import Volume, gate
from dicom_node.worker.sources import Source
from sr_engine.dicom.kinds import COMPANIONS, FORMS
from sr_engine.dicom.reader import read_series
from tests import phantoms
from tests.dicom_node.test_release_gate import (
    SECRET,
    changed_document,
    drop,
    forge,
    put,
    rules_of,
)

KINDS = [f"{form}+{name}" for form in FORMS for name in COMPANIONS]


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """Return the source's files, those of every kind, and what the job says it did."""
    folder = tmp_path_factory.mktemp("beside")
    phantom = phantoms.corner_series(folder / "source", "double-oblique")
    source = read_series(phantom.paths)
    derived = phantoms.derive(source, folder / "out", kinds=[*FORMS, *KINDS])
    return phantom.paths, {one.kind: one.paths for one in derived.outputs}, derived.provenance


@pytest.fixture(scope="module")
def outputs(job):
    return job[:2]


def look(outputs, kind):
    source, files = outputs
    return check_companion(kind, files[kind], files[kind.partition("+")[0]], source)


def test_every_companion_passes(outputs):
    assert {kind: look(outputs, kind) for kind in KINDS} == dict.fromkeys(KINDS, [])


def test_a_companion_of_the_other_form_is_refused(outputs):
    source, files = outputs

    findings = check_companion("classic+report", files["enhanced+report"], files["classic"], source)

    assert rules_of(findings) >= {"companion_references", "companion_provenance"}


def elsewhere(dataset):
    """Let the last reference point to somebody else's image."""
    for item in dataset.ContentSequence:
        for named in item.get("ReferencedSOPSequence", ()):
            named.ReferencedSOPInstanceUID = "1.2.3"


def another_study(dataset):
    dataset.CurrentRequestedProcedureEvidenceSequence[0].StudyInstanceUID = "1.2.3"


def swap_pairs(dataset):
    images = [one for one in dataset.ContentSequence if one.ValueType == "IMAGE"]
    first, last = (one.ReferencedSOPSequence for one in (images[1], images[-1]))
    images[1].ReferencedSOPSequence, images[-1].ReferencedSOPSequence = last, first


def no_references(dataset):
    del dataset.ReferencedSeriesSequence
    del dataset.GraphicAnnotationSequence
    del dataset.SoftcopyVOILUTSequence
    del dataset.DisplayedAreaSelectionSequence


def frame_moved(dataset):
    place = dataset.PerFrameFunctionalGroupsSequence[3].PlanePositionSequence[0]
    place.ImagePositionPatient = [0, 0, 0]


def no_unit(dataset):
    mapping = dataset.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0]
    mapping.RealWorldValueSlope = 0.0


def nothing_but_zero(dataset):
    dataset.PixelData = bytes(len(dataset.PixelData))


def one_more_byte_pair(dataset):
    dataset.PixelData += bytes(2)


def references(dataset):
    """Return the items of the document that name an image."""
    return [
        named for item in dataset.ContentSequence for named in item.get("ReferencedSOPSequence", ())
    ]


def as_another_class(dataset):
    references(dataset)[3].ReferencedSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"


def to_a_frame(dataset):
    references(dataset)[3].ReferencedFrameNumber = 2


def in_the_other_series(dataset):
    original, derived = dataset.CurrentRequestedProcedureEvidenceSequence[
        0
    ].ReferencedSeriesSequence
    original.SeriesInstanceUID, derived.SeriesInstanceUID = (
        derived.SeriesInstanceUID,
        original.SeriesInstanceUID,
    )


def in_a_foreign_series(dataset):
    dataset.ReferencedSeriesSequence[0].SeriesInstanceUID = "1.2.3"


def without_the_last_image(dataset):
    dataset.ReferencedSeriesSequence[0].ReferencedImageSequence.pop()
    dataset.GraphicAnnotationSequence.pop()
    for name in ("SoftcopyVOILUTSequence", "DisplayedAreaSelectionSequence"):
        for item in dataset[name].value:
            if "ReferencedImageSequence" in item:
                item.ReferencedImageSequence.pop()


def label(dataset, place):
    return dataset.GraphicAnnotationSequence[place].TextObjectSequence[0]


def labels_swapped(dataset):
    first, last = label(dataset, 0), label(dataset, -1)
    first.UnformattedTextValue, last.UnformattedTextValue = (
        last.UnformattedTextValue,
        first.UnformattedTextValue,
    )


def label_too_far(dataset):
    label(dataset, 3).UnformattedTextValue = "level of original image 4, 0.75 mm away"


def label_missing(dataset):
    dataset.GraphicAnnotationSequence.pop()


def without_the_last_source(dataset):
    shared = dataset.SharedFunctionalGroupsSequence[0]
    shared.DerivationImageSequence[0].SourceImageSequence.pop()
    dataset.ReferencedSeriesSequence[0].ReferencedInstanceSequence.pop()


def without_evidence(dataset):
    (study,) = dataset.CurrentRequestedProcedureEvidenceSequence
    study.ReferencedSeriesSequence[0].ReferencedSOPSequence.pop()


def originals_twice(dataset):
    listed = references(dataset)
    listed[1].ReferencedSOPInstanceUID = listed[0].ReferencedSOPInstanceUID


DAMAGE = {
    "another patient": ("report", put(PatientName=SECRET), "companion_identity"),
    "another accession": ("spread", put(AccessionNumber="77"), "companion_identity"),
    "another class": ("key_objects", put(Modality="SR"), "companion_class"),
    "forged": ("presentation", forge, "companion_provenance"),
    "another job's": ("report", changed_document(generation=9), "companion_provenance"),
    "unnamed series": ("report", put(SeriesInstanceUID="1.2.3"), "companion_provenance"),
    "another study": ("report", another_study, "companion_references"),
    "another image": ("key_objects", elsewhere, "companion_references"),
    "no image": ("presentation", no_references, "companion_references"),
    "as another class": ("key_objects", as_another_class, "companion_references"),
    "a frame of a classic image": ("key_objects", to_a_frame, "companion_references"),
    "in the other series": ("key_objects", in_the_other_series, "companion_references"),
    "in a foreign series": ("spread", in_a_foreign_series, "companion_references"),
    "a slice not shown": ("presentation", without_the_last_image, "companion_coverage"),
    "a map of some": ("spread", without_the_last_source, "companion_coverage"),
    "not in the evidence": ("report", without_evidence, "companion_coverage"),
    "labels swapped": ("presentation", labels_swapped, "presentation_levels"),
    "a label of another distance": ("presentation", label_too_far, "presentation_levels"),
    "a label missing": ("presentation", label_missing, "presentation_levels"),
    "an original with itself": ("key_objects", originals_twice, "key_object_pairs"),
    "pairs swapped": ("key_objects", swap_pairs, "key_object_pairs"),
    "a pair missing": ("key_objects", lambda d: d.ContentSequence.pop(), "key_object_pairs"),
    "no frames": ("spread", drop("PerFrameFunctionalGroupsSequence"), "spread_grid"),
    "frame moved": ("spread", frame_moved, "spread_grid"),
    "other rows": ("spread", put(Rows=7), "spread_grid"),
    "frame of reference": ("spread", put(FrameOfReferenceUID="1.2.3"), "spread_grid"),
    "zero everywhere": ("spread", nothing_but_zero, "spread_pixels"),
    "more pixels than frames": ("spread", one_more_byte_pair, "spread_pixels"),
    "a frame more in words": ("spread", put(NumberOfFrames=13), "spread_pixels"),
    "signed": ("spread", put(PixelRepresentation=1), "spread_pixels"),
    "no dimensions": ("spread", drop("DimensionIndexSequence"), "spread_pixels"),
    "no unit": ("spread", no_unit, "spread_unit"),
    "PRODUCT": ("spread", put(ContentQualification="PRODUCT"), "spread_qualification"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damage_is_named_by_its_rule(name, outputs, tmp_path):
    source, files = outputs
    companion, damage, rule = DAMAGE[name]
    kind = f"classic+{companion}"
    damaged = tmp_path / "damaged.dcm"
    shutil.copy(files[kind][0], damaged)
    phantoms.edit(damaged, damage)

    findings = check_companion(kind, [damaged], files["classic"], source)

    assert rule in rules_of(findings)
    assert not any(SECRET in finding.message for finding in findings)


def test_an_image_in_the_place_of_a_companion_is_refused(outputs):
    source, files = outputs

    findings = check_companion("classic+report", files["classic"][:1], files["classic"], source)

    assert rules_of(findings) >= {"companion_class", "companion_series"}


def test_every_rule_has_a_damage_that_breaks_it():
    assert set(RULES) <= {rule for _, _, rule in DAMAGE.values()} | {"companion_series"}


def test_what_cannot_be_read_is_a_finding(outputs, tmp_path):
    source, files = outputs

    gone = check_companion("classic+report", [tmp_path / "gone"], files["classic"], source)
    none = check_companion("classic+report", [], files["classic"], source)

    assert rules_of(gone) == rules_of(none) == {"readable"}


def test_all_kinds_of_a_job_are_looked_at_together(job, tmp_path):
    source, files, made = job
    gone = [tmp_path / "gone.dcm"]

    def look(files, source):
        whole = Source(name="", sop_uids=frozenset(), paths=tuple(source))
        return gate([Volume(source=whole, files=files, provenance=made)])

    assert look(files, source) == []
    assert rules_of(look(files, gone)) == {"source_readable"}
    assert rules_of(look(files | {"classic": gone}, source)) == {"readable"}
    found = rules_of(look(files | {"enhanced": files["classic"]}, source))
    assert found >= {"pixel_description", "companion_references"}

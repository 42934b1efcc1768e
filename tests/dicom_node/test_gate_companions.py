"""What goes out beside an image passes the gate; each damage is named by its rule."""

import shutil

import pytest

from dicom_node.gate_companions import RULES
from dicom_node.release_gate import check_companion
from sr_engine.dicom import provenance
from sr_engine.dicom.kinds import COMPANIONS, FORMS
from sr_engine.dicom.reader import read_series
from tests import phantoms
from tests.dicom_node.test_release_gate import SECRET, drop, forge, put, rules_of

KINDS = [f"{form}+{name}" for form in FORMS for name in COMPANIONS]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """Return the source's files and those of every kind."""
    folder = tmp_path_factory.mktemp("beside")
    phantom = phantoms.corner_series(folder / "source", "double-oblique")
    source = read_series(phantom.paths)
    derived = phantoms.derive(source, folder / "out", kinds=[*FORMS, *KINDS])
    return phantom.paths, {one.kind: one.paths for one in derived.outputs}


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


def another_document(dataset):
    made = provenance.from_dataset(dataset)
    values = {**made.__dict__, "generation": 9}
    provenance.to_private_block(dataset, provenance.Provenance(**values))


DAMAGE = {
    "another patient": ("report", put(PatientName=SECRET), "companion_identity"),
    "another accession": ("spread", put(AccessionNumber="77"), "companion_identity"),
    "another class": ("key_objects", put(Modality="SR"), "companion_class"),
    "forged": ("presentation", forge, "companion_provenance"),
    "another job's": ("report", another_document, "companion_provenance"),
    "unnamed series": ("report", put(SeriesInstanceUID="1.2.3"), "companion_provenance"),
    "another study": ("report", another_study, "companion_references"),
    "another image": ("key_objects", elsewhere, "companion_references"),
    "no image": ("presentation", no_references, "companion_references"),
    "pairs swapped": ("key_objects", swap_pairs, "key_object_pairs"),
    "a pair missing": ("key_objects", lambda d: d.ContentSequence.pop(), "key_object_pairs"),
    "no frames": ("spread", drop("PerFrameFunctionalGroupsSequence"), "spread_grid"),
    "frame moved": ("spread", frame_moved, "spread_grid"),
    "other rows": ("spread", put(Rows=7), "spread_grid"),
    "frame of reference": ("spread", put(FrameOfReferenceUID="1.2.3"), "spread_grid"),
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

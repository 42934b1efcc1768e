"""A recall with a real archive: the node as its own processes, Orthanc holds the notes."""

import json

import pydicom

from sr_engine.model.bundle import file_sha256
from tests.integration import marks
from tests.integration.partners import Node, storescu, wait_for
from tests.integration.test_main_line import ADMIT_ANY_MR, engine
from tests.validators import errors


def notes_at(archive, folder) -> list[pydicom.Dataset]:
    """Return the Key Object Selections that the archive holds."""
    found = [row for row in archive.series() if row["MainDicomTags"]["Modality"] == "KO"]
    paths = [path for row in found for path in archive.download(row, folder)]
    for path in paths:
        assert errors("dciodvfy", path) == set()
    return [pydicom.dcmread(path) for path in paths]


def test_after_a_recall_the_jobs_say_so_and_orthanc_holds_the_rejection_note(
    archive, small_weights, tmp_path
):
    volume, _ = marks.marked_volume("axial")
    sources = marks.write_marked(tmp_path / "in", volume)
    source = pydicom.dcmread(sources[0], stop_before_pixels=True)
    node = Node(
        tmp_path / "node",
        archives=[archive],
        rules=ADMIT_ANY_MR,
        engine=engine(small_weights, 2.0),
        port=archive.node_port,
    ).start()
    try:
        storescu(node.port, sources)
        sent = node.wait_state(source.SeriesInstanceUID, ["DELIVERED", "HELD", "DEAD"], 180)
        assert sent["state"] == "DELIVERED", sent["reason"]

        why = "a test found it wrong"
        done = node.cli(
            "recall", "--weights", file_sha256(small_weights), "--reason", why, "--json"
        )
        assert done.returncode == 0, done.stderr
        [listed] = json.loads(done.stdout)["series"]
        assert listed["derived_series_uid"] == sent["derived_series_uid"]
        [note] = wait_for("the note arrives", lambda: notes_at(archive, tmp_path / "notes"), 60)

        def told() -> list[dict]:
            row = node.job(source.SeriesInstanceUID)
            return [one for one in row["deliveries"] if one.get("content") and one["sent"]]

        wait_for("its delivery is on record", told, 60)
        storescu(node.port, sorted((tmp_path / "notes").glob("*.dcm")))  # as an archive forwards it
        returned = node.wait_state(note.SeriesInstanceUID, ["SKIPPED"], 60)
        listing = json.loads(node.cli("jobs", "--json").stdout)
        page = node.page("/")
    finally:
        assert node.stop() == 0

    assert "It is a rejection note (Rejected for Patient Safety Reasons)" in returned["reason"]
    [row] = [each for each in listing if each["modality"] == "MR"]
    assert row["state"] == "CANCELLED" and why in row["reason"]
    assert why in page
    [evidence] = note.CurrentRequestedProcedureEvidenceSequence
    [series] = evidence.ReferencedSeriesSequence
    assert evidence.StudyInstanceUID == source.StudyInstanceUID
    assert series.SeriesInstanceUID == sent["derived_series_uid"]
    [derived] = archive.series(sent["derived_series_uid"])
    assert len(series.ReferencedSOPSequence) == len(derived["Instances"])
    assert note.ConceptNameCodeSequence[0].CodeMeaning == "Rejected for Patient Safety Reasons"

"""Work that a manager schedules is claimed once, done, and reported, whatever breaks meanwhile."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from pydicom import dcmread

from dicom_node import assembly
from dicom_node.intake import submit_file
from dicom_node.network import ups_dimse
from dicom_node.network.archive import LoopbackArchive
from dicom_node.network.connecting import AssociationFault
from dicom_node.network.ups import Lost
from dicom_node.performer import Performer
from dicom_node.pixel_files import PixelFiles
from dicom_node.sender import Sender
from dicom_node.states import JobState
from dicom_node.store import open_store
from dicom_node.worker import Worker
from tests import phantoms
from tests.dicom_node.nodes import ANY_MR, copying_engine
from tests.rigs import rig_settings
from tests.ups_manager import DimseManager, dimse_manager, element, task_manager

UID = "1.2.826.0.1.99"


class Line:
    """A node with a worklist, driven step by step."""

    def __init__(self, folder, manager, archive, **of_pacs):
        vna = {"name": "images", "protocol": "dicomweb", "url": manager.url, "commitment": False}
        others = []
        if isinstance(manager, DimseManager):
            tasks = {"name": "manager", "ae_title": "MANAGER", "host": "127.0.0.1"}
            others = [tasks | {"port": manager.port, "worklist_code": "AI-SR"}]
        else:
            vna |= {"name": "manager", "worklist_code": "AI-SR"}
        pacs = {"name": "pacs", "ae_title": "ARCHIVE", "host": "127.0.0.1", "port": archive.port}
        self.settings = rig_settings(
            folder,
            peers=[vna, *others, pacs | {"roles": ["destination"]} | of_pacs],
            rules=[ANY_MR | {"to": ["pacs"]}],
            assembly={"idle_s": 1.0, "min_slices": 2},
        )
        self.store = open_store(self.settings.database_url)
        self.now = datetime.now(UTC)
        self.performer = self.new_performer()

    def new_performer(self):
        """Return a performer that knows only what is in the database."""
        return Performer(self.store, self.settings, clock=lambda: self.now)

    def look(self, times=1):
        for _ in range(times):
            self.performer.run_once()

    def enhance(self, **engine):
        later = datetime.now(UTC) + timedelta(seconds=5)
        assembly.tick(self.store, self.settings, later)
        Worker(self.settings, self.store, engine=copying_engine(**engine)).run_once()

    def send(self):
        Sender(self.store, self.settings).run_once(datetime.now(UTC))

    @property
    def claim(self):
        [one] = self.store.workitems.listing()
        return one


@pytest.fixture
def manager(request, tmp_path):
    paths = phantoms.corner_series(tmp_path / "scan").paths
    with getattr(request, "param", task_manager)(paths) as running:
        yield running


# What a manager is told, and what it answers, differs between the two.
EITHER = pytest.mark.parametrize("manager", [task_manager, dimse_manager], indirect=True)


@pytest.fixture
def line(tmp_path, manager):
    with LoopbackArchive(tmp_path / "archive") as archive:
        made = Line(tmp_path / "state", manager, archive)
        yield made
        made.store.close()


@EITHER
def test_a_task_is_claimed_fetched_done_and_completed_with_its_outputs(line, manager):
    manager.schedule(UID)
    line.look(2)  # claim, fetch
    assert manager.state(UID) == "IN PROGRESS"
    assert line.store.series.listing()[0]["instances"] == len(manager.images)
    line.enhance()
    line.look()
    assert list(map(float, manager.progress(UID)["00741004"]["Value"])) == [90]
    assert manager.state(UID) == "IN PROGRESS", "the archive does not have it yet"
    line.send()
    line.look()

    assert manager.state(UID) == "COMPLETED"
    [job] = line.store.jobs.of_series(line.store.series.listing()[0]["series_uid"])
    [output] = manager.performed(UID)["00404033"]["Value"]
    derived = line.store.jobs.derived(job.id)
    assert output["0020000E"]["Value"] == [job.derived_series_uid]
    assert output["0020000D"]["Value"] == [str(dcmread(derived[0].path).StudyInstanceUID)]
    assert output["0040E021"]["Value"][0]["00080054"]["Value"] == ["ARCHIVE"]
    told = {one["00081155"]["Value"][0] for one in output["00081199"]["Value"]}
    assert told == {one.sop_uid for one in derived}
    assert line.claim.state == "COMPLETED"

    line.look(3)
    assert manager.history.count((UID, "IN PROGRESS")) == 1


def test_every_series_that_the_destination_got_is_an_output(tmp_path, manager):
    with LoopbackArchive(tmp_path / "archive") as archive:
        line = Line(tmp_path / "state", manager, archive, companions=["key_objects"])
        manager.schedule(UID)
        line.look(2)
        line.enhance()
        line.send()
        line.look()
        line.store.close()

    assert manager.state(UID) == "COMPLETED"
    outputs = manager.performed(UID)["00404033"]["Value"]
    sizes = [len(one["00081199"]["Value"]) for one in outputs]
    assert len({one["0020000E"]["Value"][0] for one in outputs}) == 2
    assert sizes == [len(archive.received) - 1, 1]


@EITHER
def test_work_of_another_code_and_more_than_we_have_room_for_is_left_to_others(line, manager):
    manager.schedule("1.2.1", code="OTHER")
    for number in range(2, 6):
        manager.schedule(f"1.2.{number}")

    line.look()

    states = [manager.state(f"1.2.{number}") for number in range(1, 6)]
    assert states == ["SCHEDULED", "IN PROGRESS", "IN PROGRESS", "SCHEDULED", "SCHEDULED"]


@EITHER
def test_a_claim_whose_answer_was_lost_is_taken_up_by_the_next_process(line, manager):
    manager.schedule(UID)
    manager.lose_answers_to.add("IN PROGRESS")
    line.look()
    assert (manager.state(UID), line.claim.state) == ("IN PROGRESS", "CLAIMING")
    manager.lose_answers_to.clear()
    line.performer = line.new_performer()

    line.look(2)

    assert line.claim.state == "WORKING"
    assert len(manager.keys) == 1


@EITHER
def test_who_was_faster_keeps_the_work(line, manager):
    manager.schedule(UID)
    manager.lose_answers_to.add("IN PROGRESS")
    line.look()
    manager.keys[UID] = "2.25.1"  # somebody else's, as it turns out
    manager.lose_answers_to.clear()

    line.look()

    assert line.claim.state == "LOST"
    assert manager.history == [(UID, "IN PROGRESS")]


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"0040E025": element("SQ", {"00081190": element("UR", "http://evil.example/x")})},
         "which is no source here"),
        ({"0020000E": element("UI", "1.2.3.4")}, "has nothing of that series"),
    ],
)  # fmt: skip
def test_images_that_cannot_be_had_are_waited_for_and_then_the_work_is_given_back(
    line, manager, inputs, words
):
    manager.schedule(UID, **inputs)
    line.look(3)
    assert manager.state(UID) == "IN PROGRESS"
    line.now += timedelta(seconds=3601)

    line.look()

    assert manager.state(UID) == "CANCELED"
    assert words in manager.progress(UID)["00741238"]["Value"][0]
    assert line.claim.state == "CANCELED"


@EITHER
def test_a_series_that_is_skipped_gives_the_work_back_with_the_reason(line, manager):
    settings = line.settings.model_copy(update={"rules": ()})
    manager.schedule(UID)
    line.look(2)
    assembly.tick(line.store, settings, datetime.now(UTC) + timedelta(seconds=5))

    line.look()

    assert manager.state(UID) == "CANCELED"
    [job] = line.store.jobs.of_series(line.store.series.listing()[0]["series_uid"])
    assert job.state is JobState.SKIPPED
    assert manager.progress(UID)["00741238"]["Value"] == [job.reason]


@EITHER
@pytest.mark.parametrize("state", ["COMPLETED", "CANCELED"])
def test_an_end_that_was_heard_and_whose_answer_was_lost_is_not_lost(line, manager, state):
    manager.schedule(UID)
    line.look(2)
    if state == "COMPLETED":
        line.enhance()
        line.send()
    else:
        settings = line.settings.model_copy(update={"rules": ()})
        assembly.tick(line.store, settings, datetime.now(UTC) + timedelta(seconds=5))
    manager.lose_answers_to.add(state)
    line.look()
    assert (manager.state(UID), line.claim.state) == (state, "WORKING")

    line.look()

    assert line.claim.state == state
    assert manager.history.count((UID, state)) == 1


def test_a_held_result_keeps_the_work_in_progress_and_says_why(line, manager):
    manager.schedule(UID)
    line.look(2)
    line.enhance(passed=False)

    line.look()

    assert manager.state(UID) == "IN PROGRESS"
    assert "twice the noise" in manager.progress(UID)["00741006"]["Value"][0]


def test_a_series_without_images_is_not_fetched_yet(line, manager):
    manager.schedule(UID)
    manager.index_is_late = True
    line.look(3)
    assert line.claim.state == "CLAIMED"
    manager.index_is_late = False

    line.look()

    assert line.claim.state == "WORKING"
    assert line.store.series.listing()[0]["instances"] == len(manager.images)


def test_work_is_not_completed_while_one_of_its_series_has_come_to_nothing(line, manager):
    manager.schedule(UID)
    line.look()
    second = line.claim.series[0] | {"series_uid": "1.2.3.4"}
    with line.store.database.transaction() as work:
        series = json.dumps([*line.claim.series, second])
        work.connection.exec_driver_sql("UPDATE workitem SET series = ?", (series,))
    line.store.workitems.move(line.claim, "WORKING", line.now)
    for path in manager.images:
        files = PixelFiles(line.settings.node.state_dir / "in", 0)
        submit_file(path, files, line.store, datetime.now(UTC))
    line.enhance()
    line.send()
    line.look()
    assert manager.state(UID) == "IN PROGRESS"
    line.now += timedelta(seconds=3601)

    line.look()

    assert manager.state(UID) == "CANCELED"
    assert "1.2.3.4" in manager.progress(UID)["00741238"]["Value"][0]


@pytest.mark.parametrize("how", ["switch", "shadow", "enabled"])
@pytest.mark.parametrize("looks", [0, 1, 2])  # before the claim, before the fetch, after it
def test_nobody_hears_of_us_while_nothing_may_be_sent(line, manager, how, looks):
    manager.schedule(UID)
    line.look(looks)
    if looks == 2:
        line.enhance()
        line.send()
    before, claims = list(manager.history), line.store.workitems.listing()
    sending = line.settings.sending.model_copy(update={"shadow": how == "shadow"})
    if how == "switch":
        line.store.switches.set("sending", False, line.now)
    elif how == "enabled":
        sending = sending.model_copy(update={"enabled": False})
    mute = line.settings.model_copy(update={"sending": sending})
    quiet = Performer(line.store, mute, clock=lambda: line.now + timedelta(days=1))

    quiet.run_once()

    assert manager.history == before
    assert line.store.workitems.listing() == claims
    if how == "switch":
        line.store.switches.set("sending", True, line.now)
        line.look(2)
        assert len(manager.history) > len(before)


@EITHER
def test_a_manager_that_is_away_is_asked_again(line, manager, monkeypatch):
    manager.schedule(UID)
    monkeypatch.setattr(manager, "in_state", lambda state: 1 / 0)
    line.look()
    assert line.store.workitems.listing() == []
    monkeypatch.undo()

    line.look()

    assert line.claim.state == "CLAIMED"


@pytest.mark.parametrize("manager", [dimse_manager], indirect=True)
def test_a_manager_that_breaks_off_in_the_middle_is_asked_again(line, manager, monkeypatch):
    """A change of state that is answered with an abort may have been heard."""
    manager.schedule(UID)

    def heard(event):
        DimseManager.on_action(manager, event)
        event.assoc.abort()
        return 0x0000, None

    monkeypatch.setattr(manager, "changing", heard)
    line.look()
    assert (manager.state(UID), line.claim.state) == ("IN PROGRESS", "CLAIMING")
    monkeypatch.undo()

    line.look()

    assert line.claim.state == "CLAIMED"
    assert manager.history.count((UID, "IN PROGRESS")) == 1


@pytest.mark.parametrize(
    ("status", "fault"),
    [(None, AssociationFault), (0x0110, AssociationFault), (0xA700, AssociationFault),
     (0xC300, Lost), (0xC302, Lost), (0xC307, Lost), (0x0112, Lost)],
)  # fmt: skip
def test_what_a_dimse_manager_answers_is_lost_or_worth_another_look(status, fault):
    with pytest.raises(AssociationFault) as raised:
        ups_dimse.refuse(status)

    assert type(raised.value) is fault
    for fine in (0x0000, 0x0001, 0xB305, 0xB306):
        ups_dimse.refuse(fine)


def test_words_beyond_ascii_name_their_character_set():
    said = {"00741238": {"vr": "LT", "Value": ["größer als erwartet"]}}

    made = ups_dimse.data_set(said)

    assert made.SpecificCharacterSet == "ISO_IR 192"
    assert ups_dimse.in_json(made)["00741238"] == said["00741238"]
    assert "SpecificCharacterSet" not in ups_dimse.data_set({"00741000": {"vr": "CS"}})

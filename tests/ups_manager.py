"""A task manager on loopback with the rules of PS3.4 CC, UPS-RS and DIMSE, and the images."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydicom import Dataset, dcmread
from pynetdicom import AE, evt
from pynetdicom.sop_class import UnifiedProcedureStepPull

from dicom_node.multipart import closing, opening
from tests.webserver import Asked, Told, web_server

STATE, TRANSACTION, CODES, INPUTS = "00741000", "00081195", "00404018", "00404021"
PROGRESS, PERFORMED = "00741002", "00741216"
# What must be there before COMPLETED (PS3.4 table CC.2.5-3, final state "R" or "P").
FINAL = ("00404028", "00404050", "00404051", "00404019", "00404033")


def element(vr: str, *values: Any) -> dict[str, Any]:
    """Return an element in DICOM JSON."""
    return {"vr": vr, "Value": list(values)}


@dataclass(kw_only=True)
class TaskManager:
    """Workitems by UID, the images that can be fetched, and how to fail next."""

    images: Sequence[Path] = ()
    url: str = ""
    workitems: dict[str, dict[str, Any]] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)  # the transaction UID of each claim
    history: list[tuple[str, str]] = field(default_factory=list)  # what was accepted
    lose_answers_to: set[str] = field(default_factory=set)  # states: taken, answered with 500
    index_is_late: bool = False  # it shows series, and none of their images yet

    def schedule(self, uid: str, code: str = "AI-SR", **input_values: Any) -> None:
        """Add a workitem about the images."""
        header = dcmread(self.images[0], stop_before_pixels=True)
        wanted = {
            "0020000D": element("UI", str(header.StudyInstanceUID)),
            "0020000E": element("UI", str(header.SeriesInstanceUID)),
            "0040E025": element("SQ", {"00081190": element("UR", f"{self.url}/studies/1")}),
        }
        coded = {"00080100": element("SH", code), "00080102": element("SH", "99TEST")}
        coded["00080104"] = element("LO", "Super-resolution")
        self.workitems[uid] = {
            "00080018": element("UI", uid),
            STATE: element("CS", "SCHEDULED"),
            CODES: element("SQ", coded),
            INPUTS: element("SQ", wanted | input_values),
        }

    def state(self, uid: str) -> str:
        """Return the state of a workitem."""
        return self.workitems[uid][STATE]["Value"][0]

    def progress(self, uid: str) -> dict[str, Any]:
        """Return the progress information of a workitem."""
        return self.workitems[uid][PROGRESS]["Value"][0]

    def performed(self, uid: str) -> dict[str, Any]:
        """Return what was performed."""
        return self.workitems[uid][PERFORMED]["Value"][0]

    def answer(self, asked: Asked) -> Told:
        """Return the answer to one request."""
        parts = asked.path.removeprefix("/web/").split("/")
        if parts[0] == "workitems" and len(parts) == 1:
            return self._search(asked)
        if parts[0] == "workitems" and parts[1] not in self.workitems:
            return Told(status=404)
        if parts[0] == "workitems" and asked.method == "GET" and len(parts) == 2:
            return as_json([self.workitems[parts[1]]])
        if parts[0] == "workitems" and asked.method == "PUT" and parts[2:] == ["state"]:
            return self._change(parts[1], json.loads(asked.body)[0])
        if parts[0] == "workitems" and asked.method == "POST" and len(parts) == 2:
            return self._update(parts[1], asked)
        if asked.method == "GET":
            return self._images(parts)
        return Told(status=405)

    def _search(self, asked: Asked) -> Told:
        [state] = asked.query["ProcedureStepState"]
        if asked.query.get("offset", ["0"]) != ["0"]:
            return Told(status=204)
        return as_json(self.in_state(state))

    def in_state(self, state: str) -> list[dict[str, Any]]:
        """Return the workitems in a state, of whatever code."""
        return [one for uid, one in self.workitems.items() if self.state(uid) == state]

    def _change(self, uid: str, said: dict[str, Any]) -> Told:
        state, key = said[STATE]["Value"][0], said[TRANSACTION]["Value"][0]
        if state == "IN PROGRESS":
            if self.state(uid) != "SCHEDULED":
                return Told(status=409)
            self.keys[uid] = key
        elif self.state(uid) != "IN PROGRESS" or self.keys[uid] != key:
            return Told(status=409)
        elif state == "COMPLETED" and not self._may_complete(uid):
            return Told(status=409)
        self.workitems[uid][STATE] = element("CS", state)
        self.history.append((uid, state))
        return Told(status=500 if state in self.lose_answers_to else 200)

    def _may_complete(self, uid: str) -> bool:
        performed = self.workitems[uid].get(PERFORMED, {}).get("Value", [{}])[0]
        return all(performed.get(tag, {}).get("Value") for tag in FINAL)

    def _update(self, uid: str, asked: Asked) -> Told:
        said = json.loads(asked.body)[0]
        if asked.query.get("transaction") != said[TRANSACTION]["Value"]:
            return Told(status=400)
        return Told(status=self.set(uid, said))

    def set(self, uid: str, said: dict[str, Any]) -> int:
        """Set attributes; return the status of HTTP."""
        key = said.pop(TRANSACTION)["Value"][0]
        if self.state(uid) != "IN PROGRESS" or self.keys[uid] != key:
            return 409
        if STATE in said:
            return 400
        self.workitems[uid] |= said
        self.history.append((uid, "update"))
        return 200

    def _images(self, parts: list[str]) -> Told:
        headers = [dcmread(path, stop_before_pixels=True) for path in self.images]
        if parts[-1] == "instances" and self.index_is_late:
            return Told(status=204)
        if parts[-1] in ("series", "instances"):
            rows = [
                {
                    "0020000D": element("UI", str(one.StudyInstanceUID)),
                    "0020000E": element("UI", str(one.SeriesInstanceUID)),
                    "00080018": element("UI", str(one.SOPInstanceUID)),
                    "00080060": element("CS", "MR"),
                }
                for one in headers
            ]
            return as_json(rows if parts[-1] == "instances" else rows[:1])
        framed = [
            opening("xyz", "application/dicom", first=not number) + path.read_bytes()
            for number, path in enumerate(self.images)
        ]
        kind = 'multipart/related; type="application/dicom"; boundary=xyz'
        return Told(body=b"".join(framed) + closing("xyz"), headers={"Content-Type": kind})


# What DIMSE calls the refusals of HTTP (PS3.4 Table CC.2.1-2).
STATUSES = {200: 0x0000, 400: 0xC304, 404: 0xC307, 409: 0xC301, 500: 0x0110}


@dataclass(kw_only=True)
class DimseManager(TaskManager):
    """The same manager over the UPS Pull SOP Class; the images stay where they are."""

    port: int = 0

    def changing(self, event: evt.Event) -> tuple[int, None]:
        """Answer a change of state; tests put another one in its place."""
        return self.on_action(event)

    def on_find(self, event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        """Answer a C-FIND."""
        for one in self.in_state(str(event.identifier.ProcedureStepState)):
            yield 0xFF00, Dataset.from_json(one)

    def on_action(self, event: evt.Event) -> tuple[int, None]:
        """Answer a change of state."""
        uid = str(event.request.RequestedSOPInstanceUID)
        assert event.action_type == 1
        if uid not in self.workitems:
            return STATUSES[404], None
        return STATUSES[self._change(uid, event.action_information.to_json_dict()).status], None

    def on_set(self, event: evt.Event) -> tuple[int, None]:
        """Answer an update."""
        uid, said = str(event.request.RequestedSOPInstanceUID), event.modification_list
        if uid not in self.workitems:
            return STATUSES[404], None
        return STATUSES[self.set(uid, said.to_json_dict())], None

    def on_get(self, event: evt.Event) -> tuple[int, Dataset | None]:
        """Answer a look at some attributes."""
        uid = str(event.request.RequestedSOPInstanceUID)
        if uid not in self.workitems:
            return STATUSES[404], None
        whole = Dataset.from_json(self.workitems[uid])
        answer = Dataset()
        for tag in event.attribute_identifiers:
            answer[tag] = whole[tag]
        return STATUSES[200], answer


@contextmanager
def dimse_manager(images: Sequence[Path]) -> Iterator[DimseManager]:
    """Yield a manager that is called MANAGER, and its images on a web server."""
    manager = DimseManager(images=images)
    ae = AE(ae_title="MANAGER")
    ae.add_supported_context(UnifiedProcedureStepPull)
    handlers = [
        (evt.EVT_C_FIND, manager.on_find),
        (evt.EVT_N_ACTION, lambda event: manager.changing(event)),
        (evt.EVT_N_SET, manager.on_set),
        (evt.EVT_N_GET, manager.on_get),
    ]
    with web_server(manager.answer) as server:
        manager.url = server.url
        listener = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
        manager.port = listener.socket.getsockname()[1]
        try:
            yield manager
        finally:
            listener.shutdown()


def as_json(document: Any) -> Told:
    """Return a document in DICOM JSON."""
    return Told(
        body=json.dumps(document).encode(), headers={"Content-Type": "application/dicom+json"}
    )


@contextmanager
def task_manager(images: Sequence[Path]) -> Iterator[TaskManager]:
    """Yield a running manager."""
    manager = TaskManager(images=images)
    with web_server(manager.answer) as server:
        manager.url = server.url
        yield manager

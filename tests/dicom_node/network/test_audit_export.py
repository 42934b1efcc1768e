"""The audit trail at a collector: real sockets, XML as PS3.15 A.5 has it, nothing lost."""

import base64
import re
import socket
import sqlite3
import ssl
import threading
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from xml.etree import ElementTree as xml

import pytest
from sqlalchemy.exc import IntegrityError

from dicom_node import housekeeping, telemetry
from dicom_node.errors import SettingsError
from dicom_node.network import audit_export, syslog
from dicom_node.network.audit_messages import is_arrival
from dicom_node.network.limits import Complaints
from dicom_node.settings import make_settings
from dicom_node.store import AuditRow, open_store
from dicom_node.store.audit_export import AuditExport
from tests.certificates import Authority
from tests.dicom_node.nodes import queued_node

NOW = datetime(2026, 1, 5, 9, 0, tzinfo=UTC)


class Collector:
    """A syslog server that keeps what it gets; `cut` connections end after some bytes."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.connections: list[bytes] = []
        self.cut = False
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            try:
                self._read(sock)
            except OSError:  # a handshake that failed
                sock.close()

    def _read(self, sock: socket.socket) -> None:
        if self._context is not None:
            sock = self._context.wrap_socket(sock, server_side=True)
        with sock:
            if self.cut:
                sock.recv(10)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                return
            data = b""
            while chunk := sock.recv(65536):
                data += chunk
            self.connections.append(data)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread: else it takes one more
        self._listener.close()

    @property
    def lines(self) -> list[str]:
        """Return every message, its counted octets checked."""
        found, data = [], b"".join(self.connections)
        while data:
            length, _, data = data.partition(b" ")
            found.append(data[: int(length)].decode())
            data = data[int(length) :]
        return found

    @property
    def numbers(self) -> list[int]:
        return [int(re.search(r'sequenceId="(\d+)"', line)[1]) for line in self.lines]

    def messages(self) -> list[xml.Element]:
        return [xml.fromstring(line.partition("\ufeff")[2]) for line in self.lines]


@pytest.fixture
def collector():
    with closing(Collector()) as made:
        yield made


@pytest.fixture
def node(tmp_path, collector):
    telemetry.refusals.hand_over(lambda refusal: None)
    made = queued_node(tmp_path, audit={"syslog_host": "127.0.0.1", "syslog_port": collector.port})
    yield made
    made.store.close()


def coded(element: xml.Element, path: str) -> str:
    found = element.find(path)
    assert found.attrib["codeSystemName"] == "DCM" and found.attrib["originalText"]
    return found.attrib["csd-code"]


def roles(message: xml.Element) -> dict[str, str]:
    return {
        one.attrib["UserID"]: coded(one, "RoleIDCode")
        for one in message.findall("ActiveParticipant")
    }


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


def export(node, now=NOW) -> None:
    audit_export.export(node.store, node.settings, now)


def test_a_line_is_syslog_with_counted_octets(node, collector):
    node.store.audit.record("service.start", NOW, port=104)

    export(node)

    line = collector.lines[-1]
    header = r"<85>1 2026-01-05T09:00:00\.000Z \S+ dicom-node - DICOM\+RFC3881 "
    assert re.match(header + r'\[meta sequenceId="\d+"\] \ufeff<\?xml ', line)


def test_a_received_series_is_a_transfer_to_us(node, collector):
    export(node)

    (message,) = collector.messages()
    event = message.find("EventIdentification")
    (study,) = message.findall("ParticipantObjectIdentification")
    (part,) = study.findall("ParticipantObjectDescription/SOPClass")
    assert coded(event, "EventID") == "110104"
    assert (event.attrib["EventActionCode"], event.attrib["EventOutcomeIndicator"]) == ("C", "0")
    assert datetime.fromisoformat(event.attrib["EventDateTime"]).tzinfo is not None
    assert roles(message) == {"SUBMIT": "110153", node.settings.node.ae_title: "110152"}
    assert coded(study, "ParticipantObjectIDTypeCode") == "110180"
    series = study.find("ParticipantObjectDetail").attrib["value"]
    assert base64.b64decode(series).decode() == node.job.series_uid
    assert int(part.attrib["NumberOfInstances"]) == len(node.paths)
    source = message.find("AuditSourceIdentification")
    assert source.attrib["AuditSourceID"] == node.settings.node.ae_title


@pytest.mark.parametrize(
    ("event", "fields", "codes"),
    [
        ("service.start", {}, ("110100", "110120", "0")),
        ("service.stop", {}, ("110100", "110121", "0")),
        ("switch.set", {"switch": "sending", "value": False}, ("110113", "110131", "0")),
        ("association.refused", {"address": "10.0.0.9"}, ("110113", "110126", "4")),
        ("instance.conflict", {"calling_ae": "MR1", "sop": "1.2"}, ("110104", None, "8")),
        ("delivery.attempt", {"destination": "p", "outcome": "sent"}, ("110104", None, "0")),
        ("delivery.attempt", {"destination": "p", "outcome": "transient"}, ("110104", None, "4")),
        ("delivery.attempt", {"destination": "p", "outcome": "permanent"}, ("110104", None, "8")),
    ],
)
def test_an_event_has_its_codes(node, collector, event, fields, codes):
    node.store.audit.record(event, NOW, **fields)

    export(node)

    event = collector.messages()[-1].find("EventIdentification")
    kind = coded(event, "EventTypeCode") if codes[1] else event.find("EventTypeCode")
    assert (coded(event, "EventID"), kind, event.attrib["EventOutcomeIndicator"]) == codes


@pytest.mark.parametrize(("event", "arrives"), [("job.skip", True), ("job.reject", False)])
def test_our_own_rejection_note_is_no_series_that_was_sent_to_us(event, arrives):
    fields = {"old": "RECEIVING", "state": "DERIVED"}

    assert is_arrival(AuditRow(id=1, at=NOW, event=event, job_id=1, fields=fields)) == arrives


def test_a_delivery_is_a_transfer_from_us(node, collector):
    node.store.audit.record(
        "delivery.attempt", NOW, job=node.job.id, destination="pacs", outcome="sent"
    )

    export(node)

    message = collector.messages()[-1]
    study = message.find("ParticipantObjectIdentification")
    assert roles(message) == {node.settings.node.ae_title: "110153", "pacs": "110152"}
    assert study.attrib["ParticipantObjectID"]


@pytest.mark.parametrize(
    ("event", "code"),
    [("retention.deleted", "110103"), ("retention.study_deleted", "110105")],
)
def test_a_deletion_names_study_series_and_instances(node, collector, event, code):
    what = {"study": "1.2", "series": "1.2.3", "counts": {"1.2.840.10008.5.1.4.1.1.4": 176}}
    node.store.audit.record(event, NOW, job=node.job.id, kind="originals", **what)

    export(node)

    message = collector.messages()[-1]
    (study,) = message.findall("ParticipantObjectIdentification")
    (part,) = study.findall("ParticipantObjectDescription/SOPClass")
    assert coded(message.find("EventIdentification"), "EventID") == code
    assert message.find("EventIdentification").attrib["EventActionCode"] == "D"
    assert roles(message) == {node.settings.node.ae_title: "110150"}
    assert study.attrib["ParticipantObjectID"] == "1.2"
    detail = study.find("ParticipantObjectDetail").attrib["value"]
    assert base64.b64decode(detail).decode() == "1.2.3"
    assert part.attrib["NumberOfInstances"] == "176"


def test_callers_who_were_turned_away_while_the_database_was_away_are_in_the_trail_later(node):
    for address in ("10.0.0.7", "10.0.0.8", "10.0.0.9"):
        Complaints().note("stranger", "association.rejected", reason="unknown", address=address)
    full, file = len(node.store.audit.listing()) + 1, node.store.database.engine.url.database
    with sqlite3.connect(file) as database:
        database.execute(
            "CREATE TRIGGER full BEFORE INSERT ON audit WHEN (SELECT count(*) FROM audit) >= "
            f"{full} BEGIN SELECT raise(ABORT, 'full'); END"
        )
    with pytest.raises(IntegrityError, match="full"):
        housekeeping.export_audit(node.store, node.settings, NOW)
    with sqlite3.connect(file) as database:
        database.execute("DROP TRIGGER full")

    housekeeping.export_audit(node.store, node.settings, NOW)

    refused = [row for row in node.store.audit.listing() if row.event == "association.refused"]
    assert [row.fields["address"] for row in refused] == ["10.0.0.7", "10.0.0.8", "10.0.0.9"]


def test_a_caller_who_was_turned_away_is_in_the_trail_and_at_the_collector(node, collector):
    Complaints().note("stranger", "association.rejected", reason="unknown", address="10.0.0.9")

    housekeeping.export_audit(node.store, node.settings, NOW)

    assert node.store.audit.listing()[-1].event == "association.refused"
    message = collector.messages()[-1]
    (caller,) = message.findall("ActiveParticipant[@NetworkAccessPointID]")
    assert caller.attrib["NetworkAccessPointID"] == "10.0.0.9"


def test_characters_that_xml_cannot_carry_do_not_stop_the_export(node, collector):
    nasty = {"calling_ae": "A\0<&\x1b\"'", "reason": "\ud800 ]]> <x>"}
    node.store.audit.record("instance.conflict", NOW, sop="1.2", **nasty)

    export(node)

    assert len(collector.messages()) == 2


def test_no_patient_is_named(node, collector):
    node.store.audit.record("instance.conflict", NOW, sop="1.2", patient_name="DOE^JOHN")

    export(node)

    assert "DOE" not in "".join(collector.lines)
    assert "Patient" not in "".join(collector.lines)


def test_every_row_is_exported_once(node, collector):
    for _ in range(3):
        node.store.audit.record("service.start", NOW)
        export(node)
    export(node)

    trail = [row.id for row in node.store.audit.listing() if row.event == "service.start"]
    assert [number for number in collector.numbers if number in trail] == trail
    assert len(collector.numbers) == len(set(collector.numbers))
    assert telemetry.registry.get_sample_value("dicom_node_audit_backlog") == 0


def test_a_long_backlog_is_handed_over_in_batches(node, collector):
    with node.store.database.transaction() as work:
        for _ in range(audit_export.BATCH_ROWS * 2):
            work.record("service.start", NOW)

    export(node)

    assert len(collector.numbers) == audit_export.BATCH_ROWS * 2 + 1
    assert len(collector.connections) == 3


def test_a_restart_goes_on_where_it_was(node, collector):
    export(node)
    node.store.audit.record("service.start", NOW)

    again = open_store(node.settings.database_url)
    audit_export.export(again, node.settings, NOW)
    again.close()

    assert len(collector.numbers) == len(set(collector.numbers)) == 2


def test_a_collector_that_is_away_is_asked_less_and_less_often_and_gets_everything(node, collector):
    away = node.settings.audit.model_copy(update={"syslog_port": free_port()})
    node = replace(node, settings=node.settings.model_copy(update={"audit": away}))
    pauses, now = [], NOW
    for _ in range(8):
        export(node, now)
        state = AuditExport(node.store.database).state()
        pauses.append((state.next_try_at - now).total_seconds())
        export(node, now)  # not due: asks nobody
        assert AuditExport(node.store.database).state().failures == state.failures
        now = state.next_try_at

    assert state.failures == 8
    assert min(pauses) >= 5 and max(pauses) <= 305
    assert telemetry.registry.get_sample_value("dicom_node_audit_backlog") > 0
    with closing(Collector()) as back:
        audit = node.settings.audit.model_copy(update={"syslog_port": back.port})
        settings = node.settings.model_copy(update={"audit": audit})
        audit_export.export(node.store, settings, now)
        assert len(back.numbers) == 1
    assert AuditExport(node.store.database).state().failures == 0


def test_what_a_collector_did_not_read_is_sent_again(node, collector):
    collector.cut = True
    with node.store.database.transaction() as work:
        for _ in range(150):
            work.record("service.start", NOW)
    export(node)
    assert AuditExport(node.store.database).state().failures == 1

    collector.cut = False
    export(node, NOW + timedelta(seconds=60))

    assert len(collector.numbers) == 151


def test_without_a_host_nothing_is_exported(node, collector):
    audit = node.settings.audit.model_copy(update={"syslog_host": ""})
    settings = node.settings.model_copy(update={"audit": audit})

    audit_export.export(node.store, settings, NOW)

    assert collector.connections == []


@pytest.mark.parametrize("trusted", [True, False])
def test_over_tls_both_sides_show_a_certificate_of_our_authority(tmp_path, trusted):
    ours = Authority(tmp_path / "ca")
    theirs = ours if trusted else Authority(tmp_path / "other")
    credentials = ours.issue("node").credentials
    server = theirs.issue("collector").credentials.server()
    with closing(Collector(server)) as collector:
        to = syslog.Collector(host="127.0.0.1", port=collector.port, tls=credentials)
        lines = [syslog.line(1, NOW, syslog.NOTICE, b"<a/>", "h")]
        if trusted:
            syslog.hand_over(lines, to)
            assert collector.numbers == [1]
        else:
            with pytest.raises(OSError, match="certificate verify failed"):
                syslog.hand_over(lines, to)


def test_a_node_exports_over_tls(tmp_path):
    authority = Authority(tmp_path / "ca")
    server = authority.issue("collector").credentials.server()
    with closing(Collector(server)) as collector:
        audit = {"syslog_host": "localhost", "syslog_port": collector.port, "tls": True}
        node = queued_node(tmp_path, audit=audit, tls=authority.issue("node").section)
        export(node)
        node.store.close()

        assert len(collector.messages()) == 1


def test_tls_without_a_certificate_is_refused():
    with pytest.raises(SettingsError, match="audit.tls"):
        make_settings({"audit": {"tls": True}})


def test_a_collector_that_does_not_know_us_has_nothing(tmp_path):
    known, unknown = Authority(tmp_path / "ca"), Authority(tmp_path / "other")
    server = known.issue("collector").credentials.server()
    client = unknown.issue("node").credentials.client()
    client.load_verify_locations(known.certificate)

    class Ours:
        def client(self):
            return client

    with closing(Collector(server)) as collector:
        to = syslog.Collector(host="127.0.0.1", port=collector.port, tls=Ours())
        with pytest.raises(OSError):
            syslog.hand_over([syslog.line(1, NOW, syslog.NOTICE, b"<a/>", "h")], to)
        assert collector.connections == []

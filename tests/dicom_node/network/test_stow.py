"""STOW-RS to servers that store, refuse some, refuse all, fail, or do not answer."""

import json
import socket
import ssl
import time
from dataclasses import replace
from functools import partial

import pytest

from dicom_node.multipart import Splitter, media_type
from dicom_node.network import dicomweb, http, stow, ups
from dicom_node.network.connecting import AssociationFault, Timeouts
from dicom_node.network.http import WebFault, connected, credentials
from dicom_node.network.parcels import Item
from dicom_node.retry import HTTP_FAULTS, Fault, Verdict, classify, http_fault
from dicom_node.settings import PeerSettings
from tests.certificates import Authority
from tests.rigs import write_series
from tests.webserver import Told, raw_server, web_server

HASTY = Timeouts(connect_s=2.0, association_s=2.0, reply_s=1.0)
PATIENT = Timeouts()


@pytest.fixture
def items(tmp_path):
    return write_series(tmp_path / "a", 4)


def vna(url, **values):
    return PeerSettings(name="vna", protocol="dicomweb", url=url, **values)


def faults(outcomes):
    return [outcome.fault for outcome in outcomes]


def files_in(asked):
    """Return the files of a request."""
    kind = media_type(asked.headers["content-type"])
    assert kind.name == "multipart/related" and kind.parameters["type"] == "application/dicom"
    splitter = Splitter(kind.parameters["boundary"], 10**8)
    parts = list(splitter.feed(asked.body))
    splitter.end()
    return [part.body for part in parts]


def answer_of(stored=(), failed=(), *, wrapped=True):
    """Return the body of a STOW-RS answer: UIDs with warnings (or 0), UIDs with reasons."""
    document = {}
    for tag, reason, entries in (
        ("00081199", "00081196", stored),
        ("00081198", "00081197", failed),
    ):
        values = [
            {"00081155": {"vr": "UI", "Value": [uid]}}
            | ({reason: {"vr": "US", "Value": [code]}} if code else {})
            for uid, code in entries
        ]
        if values:
            document[tag] = {"vr": "SQ", "Value": values}
    return json.dumps([document] if wrapped else document).encode()


def item_of(uid, tag="00081197", *values):
    """Return an item of an answer that names one instance, with a reason as it is given."""
    return {"00081155": {"vr": "UI", "Value": [uid]}, tag: {"vr": "US", "Value": list(values)}}


def storing(items, failed=(), status=None, **how):
    """Return a server's answer that stores all but `failed`: (index, reason)."""
    reasons = {items[index].sop_uid: reason for index, reason in failed}

    def answer(asked):
        stored = [(each.sop_uid, 0) for each in items if each.sop_uid not in reasons]
        body = answer_of(stored, reasons.items(), **how)
        code = status or (200 if not reasons else 202 if stored else 409)
        return Told(status=code, body=body, headers={"Content-Type": "application/dicom+json"})

    return answer


@pytest.mark.parametrize("wrapped", [True, False])
def test_every_instance_arrives_byte_by_byte(items, wrapped):
    with web_server(storing(items, wrapped=wrapped)) as server:
        outcomes = list(stow.send(items, vna(server.url), timeouts=PATIENT))

    [asked] = server.asked
    assert (asked.method, asked.path) == ("POST", "/web/studies")
    assert files_in(asked) == [each.path.read_bytes() for each in items]
    assert faults(outcomes) == [0] * 4
    assert "authorization" not in asked.headers


@pytest.mark.parametrize("reason", [0xA700, 0xA900, 0xC000, 0x0110, 0x0122, 0x0124, 0xC122])
def test_each_instance_has_its_own_status(items, reason):
    with web_server(storing(items, [(1, reason)])) as server:
        outcomes = list(stow.send(items, vna(server.url), timeouts=PATIENT))

    assert faults(outcomes) == [0, reason, 0, 0]


def test_a_409_that_names_its_reasons_is_read(items):
    every = [(index, 0xA700 + index) for index in range(4)]
    with web_server(storing(items, every)) as server:
        outcomes = list(stow.send(items, vna(server.url), timeouts=PATIENT))

    assert faults(outcomes) == [0xA700, 0xA701, 0xA702, 0xA703]


def test_an_instance_that_the_answer_does_not_name_is_sent_again(items):
    with web_server(storing(items[:2])) as server:
        outcomes = list(stow.send(items, vna(server.url), timeouts=PATIENT))

    assert faults(outcomes) == [0, 0, Fault.UNCONFIRMED, Fault.UNCONFIRMED]
    assert outcomes[3].verdict is Verdict.TRANSIENT


def test_warnings_are_kept(items):
    body = answer_of([(each.sop_uid, 0xB000) for each in items])
    with web_server(lambda asked: Told(status=202, body=body)) as server:
        outcomes = list(stow.send(items, vna(server.url), timeouts=PATIENT))

    assert {one.verdict for one in outcomes} == {Verdict.SENT_WITH_WARNING}


@pytest.mark.parametrize(
    "reason",
    [0, "0", 1, 0x0107, 0x0116, 0xB000, 0xB006, 65536, 2**40, "\u00b2", "\u0663", "9" * 5000, -1,
     1.5, None, {}],
)  # fmt: skip
def test_a_failed_instance_is_not_stored_whatever_the_reason(items, reason):
    failed = {"vr": "SQ", "Value": [item_of(items[1].sop_uid, "00081197", reason)]}
    stored = {"vr": "SQ", "Value": [item_of(each.sop_uid) for each in items]}
    body = json.dumps({"00081199": stored, "00081198": failed}).encode()
    with web_server(lambda asked: Told(status=202, body=body)) as server:
        outcomes = list(stow.send(items, vna(server.url), timeouts=PATIENT))

    assert faults(outcomes) == [0, 0x0110, 0, 0]
    assert outcomes[1].verdict is Verdict.TRANSIENT


@pytest.mark.parametrize(
    ("reason", "status"),
    [(0, 0), ("\u00b2", 0), (70000, 0), (0xB007, 0xB007), (0xA700, 0x0110), (0xC000, 0x0110)],
)
def test_a_stored_instance_with_an_odd_warning(items, reason, status):
    stored = {"vr": "SQ", "Value": [item_of(items[0].sop_uid, "00081196", reason)]}
    body = json.dumps({"00081199": stored}).encode()
    with web_server(lambda asked: Told(body=body)) as server:
        outcomes = list(stow.send(items[:1], vna(server.url), timeouts=PATIENT))

    assert faults(outcomes) == [status]


@pytest.mark.parametrize("tag", ["00081198", "0008119A"])
def test_a_200_with_failures_that_name_nobody_is_not_believed(items, tag):
    body = json.dumps({tag: {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [272]}}]}})
    with web_server(lambda asked: Told(body=body.encode())) as server:
        outcomes = list(stow.send(items, vna(server.url), timeouts=PATIENT))

    assert faults(outcomes) == [Fault.UNCONFIRMED] * 4


@pytest.mark.parametrize(
    "body", [b"[" * 100000, b"", b"<xml/>", b"[]", b'"x"', b'[{"00081199": 5}]']
)
def test_a_200_without_a_list_is_believed_and_checked_later(items, body):
    with web_server(lambda asked: Told(body=body)) as server:
        assert faults(stow.send(items, vna(server.url), timeouts=PATIENT)) == [0] * 4


ROWS = [
    (300, Fault.MOVED, Verdict.PERMANENT),
    (302, Fault.MOVED, Verdict.PERMANENT),
    (400, Fault.BAD_REQUEST, Verdict.PERMANENT),
    (401, Fault.UNAUTHENTICATED, Verdict.TRANSIENT),
    (403, Fault.FORBIDDEN, Verdict.PERMANENT),
    (404, Fault.NO_SERVICE, Verdict.PERMANENT),
    (405, Fault.NO_SERVICE, Verdict.PERMANENT),
    (406, Fault.NOT_ACCEPTABLE, Verdict.PERMANENT),
    (407, Fault.UNAUTHENTICATED, Verdict.TRANSIENT),
    (408, Fault.BUSY, Verdict.TRANSIENT),
    (409, Fault.CONFLICT, Verdict.PERMANENT),
    (410, Fault.NO_SERVICE, Verdict.PERMANENT),
    (415, Fault.NOT_ACCEPTABLE, Verdict.PERMANENT),
    (422, Fault.BAD_REQUEST, Verdict.PERMANENT),
    (425, Fault.BUSY, Verdict.TRANSIENT),
    (429, Fault.BUSY, Verdict.TRANSIENT),
    (500, Fault.SERVER_ERROR, Verdict.TRANSIENT),
    (501, Fault.NO_SERVICE, Verdict.PERMANENT),
    (502, Fault.SERVER_ERROR, Verdict.TRANSIENT),
    (503, Fault.BUSY, Verdict.TRANSIENT),
    (504, Fault.SERVER_ERROR, Verdict.TRANSIENT),
    (507, Fault.SERVER_ERROR, Verdict.TRANSIENT),
    (204, Fault.UNCONFIRMED, Verdict.TRANSIENT),
]


@pytest.mark.parametrize(("status", "fault", "verdict"), ROWS)
def test_an_answer_about_the_whole_request_ends_the_attempt(items, status, fault, verdict):
    with web_server(lambda asked: Told(status=status)) as server:
        [outcome] = stow.send(items, vna(server.url), timeouts=PATIENT)

    assert (outcome.item, outcome.fault, outcome.verdict) == (items[0], fault, verdict)
    assert str(status) in outcome.comment


def test_every_row_of_the_table_has_been_tried():
    tried = {status for status, _, _ in ROWS} | {413}

    for first, last in HTTP_FAULTS:
        assert any(first <= status <= last for status in tried)
    assert classify(http_fault(413)).verdict is Verdict.PERMANENT


def test_a_request_that_is_too_large_is_halved(items):
    def answer(asked):
        if len(files_in(asked)) > 1:
            return Told(status=413)
        return storing(items)(asked)

    with web_server(answer) as server:
        outcomes = list(stow.send(items, vna(server.url), timeouts=PATIENT))

    assert faults(outcomes) == [0] * 4
    assert [len(files_in(asked)) for asked in server.asked] == [4, 2, 1, 1, 1, 1]

    with web_server(lambda asked: Told(status=413)) as server:
        [outcome] = stow.send(items, vna(server.url), timeouts=PATIENT)
    assert outcome.fault is Fault.TOO_LARGE


def test_what_is_refused_because_it_is_there_counts_as_there(items):
    with web_server(storing(items, [(0, 0xC000), (2, 0xC000)])) as server:
        there = {items[0].sop_uid}
        outcomes = list(stow.send(items, vna(server.url), timeouts=PATIENT, there=lambda: there))

    assert faults(outcomes) == [0x0111, 0, 0xC000, 0]

    def unreachable():
        raise AssociationFault(Fault.UNREACHABLE)

    with web_server(storing(items, [(0, 0xC000)])) as server:
        outcomes = list(stow.send(items, vna(server.url), timeouts=PATIENT, there=unreachable))
    assert faults(outcomes) == [0xC000, 0, 0, 0]


def test_nobody_there_silence_and_a_broken_line_have_their_faults(items):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}/web"
        [outcome] = stow.send(items, vna(url), timeouts=HASTY)
    assert outcome.fault is Fault.UNREACHABLE and url in outcome.comment

    with web_server(lambda asked: time.sleep(3) or Told()) as server:
        [outcome] = stow.send(items, vna(server.url), timeouts=HASTY)
    assert outcome.fault is Fault.TIMED_OUT

    def hang_up(asked):
        raise ConnectionAbortedError

    with web_server(hang_up) as server:
        [outcome] = stow.send(items, vna(server.url), timeouts=PATIENT)
    assert outcome.fault is Fault.ABORTED


def test_missing_and_altered_files_are_named_and_do_not_hold_up_the_others(items, tmp_path):
    gone = Item(key=9, sop_uid="1.2", path=tmp_path / "gone.dcm")
    altered = replace(items[0], sha256="0" * 64)
    with web_server(storing(items)) as server:
        outcomes = list(stow.send([gone, altered, *items[1:]], vna(server.url), timeouts=PATIENT))

    assert faults(outcomes) == [Fault.NO_FILE, Fault.ALTERED, 0, 0, 0]


def test_a_file_that_cannot_be_read_now_is_tried_again(items, tmp_path):
    looped = tmp_path / "looped.dcm"
    looped.symlink_to(looped)
    with web_server(storing(items)) as server:
        one = replace(items[0], path=looped, sha256="0" * 64)
        [outcome, _] = stow.send([one, items[1]], vna(server.url), timeouts=PATIENT)
    assert (outcome.fault, outcome.verdict) == (Fault.UNREADABLE, Verdict.TRANSIENT)


def test_a_file_that_goes_away_meanwhile_costs_one_attempt_and_no_other_instance(items):
    with web_server(storing(items)) as server:
        going = stow.send(
            items,
            vna(server.url),
            timeouts=PATIENT,
            proceed=lambda: items[1].path.unlink(missing_ok=True) or True,
        )
        assert {one.verdict for one in going} == {Verdict.TRANSIENT}
        outcomes = list(stow.send(items, vna(server.url), timeouts=PATIENT))

    assert {one.item.key: one.fault for one in outcomes} == {
        each.key: Fault.NO_FILE if each is items[1] else 0 for each in items
    }


def test_secrets_are_read_at_every_attempt_and_never_shown(items, tmp_path, monkeypatch):
    file = tmp_path / "secret"
    file.touch(mode=0o600)
    file.write_text("first\n")
    bearer = {"auth": "bearer", "secret": f"file:{file}"}
    with web_server(storing(items)) as server:
        list(stow.send(items, vna(server.url, **bearer), timeouts=PATIENT))
        file.write_text("second\n")
        list(stow.send(items, vna(server.url, **bearer), timeouts=PATIENT))
        monkeypatch.setenv("RIG_SECRET", "us:pa:ss")
        basic = {"auth": "basic", "secret": "env:RIG_SECRET"}
        list(stow.send(items, vna(server.url, **basic), timeouts=PATIENT))

    assert [asked.headers["authorization"] for asked in server.asked] == [
        "Bearer first", "Bearer second", "Basic dXM6cGE6c3M=",
    ]  # fmt: skip
    for secret in (f"file:{tmp_path / 'none'}", "env:NO_SUCH_RIG_SECRET"):
        [outcome] = stow.send(
            items, vna("http://127.0.0.1:9", auth="bearer", secret=secret), timeouts=PATIENT
        )
        assert (outcome.fault, outcome.verdict) == (Fault.NO_SECRET, Verdict.TRANSIENT)
    file.chmod(0o644)
    with pytest.raises(AssociationFault, match="everybody can read"):
        credentials(vna("http://127.0.0.1:9", **bearer))
    file.chmod(0o600)
    file.write_text("two\nlines")
    with pytest.raises(AssociationFault) as refused:
        credentials(vna("http://127.0.0.1:9", **bearer))
    assert "two" not in str(refused.value)


def test_a_certificate_is_checked_against_the_ca_of_the_peer(items, tmp_path):
    ours, others = Authority(tmp_path / "ca"), Authority(tmp_path / "other")
    issued = ours.issue("vna")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(issued.certificate, issued.key)
    with web_server(storing(items), context) as server:
        good = stow.send(items, vna(server.url, ca=str(issued.ca)), timeouts=PATIENT)
        assert faults(good) == [0] * 4
        for untrusted in ({"ca": str(others.certificate)}, {}):
            [outcome] = stow.send(items, vna(server.url, **untrusted), timeouts=PATIENT)
            assert outcome.fault is Fault.UNREACHABLE
            assert "certificate" in outcome.comment
        [outcome] = stow.send(items, vna(server.url, ca="/no/such/file"), timeouts=PATIENT)
        assert "cannot be used" in outcome.comment
    assert len(server.asked) == 1


def test_proceed_ends_the_sending_between_two_requests(items, monkeypatch):
    monkeypatch.setattr(stow, "MOST_AT_ONCE", 2)
    answers = iter([True, False])
    with web_server(storing(items)) as server:
        outcomes = list(
            stow.send(items, vna(server.url), timeouts=PATIENT, proceed=lambda: next(answers))
        )

    assert faults(outcomes) == [0, 0]


def shown(*uids):
    """Return an answer to a query."""
    rows = [{"00080018": {"vr": "UI", "Value": [uid]}} for uid in uids]
    return Told(body=json.dumps(rows).encode())


def test_instances_of_a_merged_study_are_found_and_lacking_ones_cost_one_question(items):
    uids = [each.sop_uid for each in items]
    merged = set(uids)

    def answer(asked):
        if asked.path == "/web/instances":
            [uid] = asked.query["SOPInstanceUID"]
            return shown(uid) if uid in merged else Told(status=400)
        return Told(status=404)

    with web_server(answer) as server:
        look = partial(dicomweb.instances_at, vna(server.url), "1.2", "1.3", PATIENT)
        assert look(wanted=uids) == set(uids)
        assert look() == set()
        merged.clear()
        before = len(server.asked)
        assert look(wanted=uids) == set()
        assert len(server.asked) == before + 2


def test_a_server_that_gives_few_at_a_time_is_asked_until_nothing_is_new():
    uids = [f"1.2.{number}" for number in range(7)]

    def answer(asked):
        first = int(asked.query["offset"][0])
        return shown(*uids[first : first + 3])

    with web_server(answer) as server:
        assert dicomweb.instances_at(vna(server.url), "1.2", "1.3", PATIENT) == set(uids)
    with web_server(lambda asked: shown(*uids)) as stubborn:  # ignores offset and limit
        assert dicomweb.instances_at(vna(stubborn.url), "1.2", "1.3", PATIENT) == set(uids)


@pytest.mark.parametrize(
    "bad", ["../../admin", "1.2/../3", "..", "1.2?x=1", "1.2#3", "1.2\x01", "1" * 65, "1.2 3", ""]
)
def test_what_a_server_calls_a_uid_leads_nowhere_else(bad):
    values = {tag: {"Value": [bad]} for tag in ("0020000D", "0020000E", "00080018")}
    row = values | {"00080050": {"Value": ["A1"]}}
    workitem = values | {"00404021": {"Value": [values]}}

    with web_server(lambda asked: Told(body=json.dumps([row]).encode())) as server:
        peer = vna(server.url)
        with connected(peer, PATIENT) as client:
            assert dicomweb.studies(client, peer, "A1") == []
            assert dicomweb.series(client, peer) == []
            assert dicomweb.instances(client, peer, "1.2", "1.3") == []
    for uids in (("1.2", bad), (bad, "1.3")):
        with pytest.raises(WebFault, match="is no UID"):
            dicomweb.series_url(peer, *uids)
    assert (ups.workitem_in(workitem).uid, ups.workitem_in(workitem).inputs) == ("", ())


def test_a_url_that_the_library_refuses_is_a_fault_like_others():
    with pytest.raises(WebFault), connected(vna("http://127.0.0.1:9"), PATIENT) as client:
        client.ask("GET", "http://127.0.0.1:9/\x01")


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nX-Slow: ",
        b"HTTP/1.1 200 OK\r\nContent-Length: 999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",  # a cut would look like the end of the body
    ],
)
def test_a_server_that_drips_is_cut(items, head):
    with raw_server(head, drip=b"[") as url:
        began = time.monotonic()
        [outcome] = stow.send(items, vna(url), timeouts=HASTY)
        with pytest.raises(WebFault) as refused:
            dicomweb.instances_at(vna(url), "1.2", "1.3", HASTY)

    assert (outcome.fault, refused.value.fault) == (Fault.TIMED_OUT, Fault.TIMED_OUT)
    assert time.monotonic() - began < 60


def test_a_server_that_sends_no_end_of_answers_is_not_read_on(items, monkeypatch):
    monkeypatch.setattr(http, "MOST_ANSWER_BYTES", 2**16)
    monkeypatch.setattr(dicomweb, "MOST_ANSWERS", 20)
    with web_server(lambda asked: Told(body=b" " * 2**17)) as server:
        [outcome] = stow.send(items, vna(server.url), timeouts=PATIENT)
        assert outcome.fault is Fault.UNCONFIRMED and "more than 65536" in outcome.comment

    with web_server(lambda asked: shown("1.2." + asked.query["offset"][0])) as inventive:
        with pytest.raises(WebFault, match="more than 20"):
            dicomweb.instances_at(vna(inventive.url), "1.2", "1.3", PATIENT)
        assert len(inventive.asked) == 21


def test_the_authorities_are_read_again_only_when_their_file_has_changed(tmp_path):
    first, second = Authority(tmp_path / "one"), Authority(tmp_path / "two")
    file = tmp_path / "ca.pem"
    peer = vna("https://127.0.0.1:9", ca=str(file))
    file.write_bytes(first.certificate.read_bytes())
    before = http.trust(peer)
    assert http.trust(peer) is before
    file.unlink()
    file.write_bytes(second.certificate.read_bytes() + b"\n")

    assert http.trust(peer) is not before
    assert http.trust(vna("https://127.0.0.1:9")) is http.trust(vna("https://127.0.0.1:8"))

"""Images stored by STOW-RS: durable, judged one by one, within limits, by whom it is allowed."""

import threading

import httpx
import pytest
from pydicom import dcmread
from pydicom.uid import generate_uid
from pynetdicom.sop_class import BasicFilmSession

from dicom_node.multipart import closing, opening
from dicom_node.network import scu, stow
from dicom_node.settings import PeerSettings
from tests.dicom_node.web.test_access import site
from tests.rigs import encoded, make_instance, write_series

TYPE = 'multipart/related; type="application/dicom"; boundary=xyz'
STORED, FAILED, OTHERS = "00081199", "00081198", "0008119A"


@pytest.fixture
def running(tmp_path):
    with site(tmp_path, stow=True) as made:
        yield made


def body_of(*parts, kind="application/dicom"):
    framed = [opening("xyz", kind, first=not n) + part for n, part in enumerate(parts)]
    return b"".join(framed) + closing("xyz")


def post(running, *parts, role="sender", path="", **headers):
    with running.client(role) as client:
        return client.post(
            f"dicom-web/studies{path}",
            content=body_of(*parts),
            headers={"Content-Type": TYPE} | headers,
        )


def uids(answer, tag):
    """Return the instances of a sequence of an answer, with their reasons."""
    items = answer.json().get(tag, {}).get("Value", [])
    return {
        item["00081155"]["Value"][0]: item.get("00081197", {}).get("Value", [0])[0]
        for item in items
    }


def instance(number=1, **values):
    dataset = make_instance(number, SOPInstanceUID=generate_uid(), **values)
    return str(dataset.SOPInstanceUID), encoded(dataset)


def test_our_own_client_stores_every_instance_here(running, tmp_path, monkeypatch):
    items = write_series(tmp_path / "new", 20)
    monkeypatch.setenv("RIG_TOKEN", running.tokens["sender"])
    url = f"{running.url}dicom-web"
    peer = PeerSettings(
        name="node", protocol="dicomweb", url=url, auth="bearer", secret="env:RIG_TOKEN"
    )
    for _ in range(2):  # again: nothing twice
        outcomes = list(stow.send(items, peer, timeouts=scu.Timeouts()))
        assert [outcome.fault for outcome in outcomes] == [0] * 20

    rows = {row.sop_uid: row for row in running.node.store.series.all_instances()}
    for item in items:
        row = rows[item.sop_uid]
        assert row.calling_ae == "sender"
        assert dcmread(row.path).PixelData == dcmread(item.path).PixelData
    assert ("web.stow", "sender") in running.events()


def test_each_part_is_judged_by_itself(running):
    good, good_file = instance()
    wrong_class, class_file = instance(SOPClassUID=BasicFilmSession)
    short, short_file = instance()
    other_syntax, syntax_file = instance()
    syntax_file = syntax_file.replace(b"1.2.840.10008.1.2.1\x00", b"1.2.840.10008.1.2.9\x00", 1)

    answer = post(running, good_file, class_file, short_file[:-100], b"no DICOM", syntax_file)

    assert answer.status_code == 202
    assert answer.headers["content-type"] == "application/dicom+json"
    assert uids(answer, STORED) == {good: 0}
    failed = uids(answer, FAILED)
    assert failed[wrong_class] == 0x0122
    assert 0xA900 <= failed[short] <= 0xCFFF
    [other] = answer.json()[OTHERS]["Value"]
    assert other["00081197"]["Value"] == [0xA900]


def test_an_instance_that_is_known_with_other_content_is_a_conflict(running):
    uid = generate_uid()
    first = encoded(make_instance(1, SOPInstanceUID=uid))
    second = encoded(make_instance(2, SOPInstanceUID=uid))

    assert post(running, first).status_code == 200
    answer = post(running, second)

    assert answer.status_code == 409
    assert uids(answer, FAILED) == {uid: 0x0111}
    assert post(running, first).status_code == 200


def test_an_instance_of_another_study_is_not_stored_under_this_one(running):
    uid, file = instance(StudyInstanceUID="1.2.3.4")

    assert post(running, file, path="/1.2.3.4").status_code == 200
    other, file = instance(StudyInstanceUID="1.2.3.5")
    answer = post(running, file, path="/1.2.3.4")
    assert (answer.status_code, uids(answer, FAILED)) == (409, {other: 0xA900})
    assert running.node.store.series.find_instance(other) is None


def test_a_full_disk_is_a_503_and_nothing_is_acknowledged(tmp_path):
    with site(tmp_path, stow=True) as running:
        settings = running.node.settings
        full = settings.files.model_copy(update={"min_free_bytes": 10**18})
        settings.__dict__["files"] = full
        uid, file = instance()
        answer = post(running, file)

    assert answer.status_code == 503 and "retry-after" in answer.headers
    assert uids(answer, FAILED) == {uid: 0xA700}


def test_answers_are_json_or_xml(running):
    uid, file = instance()
    answer = post(running, file, Accept="application/dicom+xml")

    assert answer.headers["content-type"].startswith("application/dicom+xml")
    assert f'keyword="ReferencedSOPInstanceUID"><Value number="1">{uid}</Value>' in answer.text
    assert post(running, file, Accept="text/html").status_code == 406


@pytest.mark.parametrize(
    ("content_type", "code"),
    [
        ("application/dicom", 415),
        ('multipart/related; type="application/dicom+json"; boundary=xyz', 415),
        ("multipart/form-data; boundary=xyz", 415),
        ('multipart/related; type="application/dicom"', 400),
        ("", 415),
    ],
)
def test_other_bodies_are_refused(running, content_type, code):
    _, file = instance()
    with running.client("sender") as client:
        answer = client.post(
            "dicom-web/studies", content=body_of(file), headers={"Content-Type": content_type}
        )

    assert answer.status_code == code
    assert "error" in answer.json()


def test_damaged_and_empty_bodies_are_refused(running):
    uid, file = instance()
    with running.client("sender") as client:
        for body, code in (
            (b"", 400),
            (closing("xyz"), 400),
            (body_of(file)[:-9], 400),
            (body_of(file, kind="image/jpeg"), 415),
        ):
            answer = client.post("dicom-web/studies", content=body, headers={"Content-Type": TYPE})
            assert answer.status_code == code, body[:40]
    assert running.node.store.series.find_instance(uid) is None


def notes(running):
    """Return what the audit trail says of requests: kept, refused, why it broke."""
    rows = [row.fields for row in running.node.store.audit.listing() if row.event == "web.stow"]
    return [(row["count"], row["failed"], row.get("reason")) for row in rows]


def test_a_request_that_breaks_leaves_what_it_brought_and_a_row(running):
    uid, file = instance()
    with running.client("sender") as client:
        broken = body_of(file, b"no DICOM")[:-9]
        client.post("dicom-web/studies", content=broken, headers={"Content-Type": TYPE})

    assert running.node.store.series.find_instance(uid) is not None
    assert notes(running) == [(1, 0, "HTTP 400")]


def test_a_caller_that_drips_gives_its_place_back(tmp_path, monkeypatch):
    with site(tmp_path, stow=True) as running, running.client("sender") as client:
        settings = running.node.settings
        hasty = settings.node.model_copy(update={"network_timeout_s": 1.0})
        monkeypatch.setitem(settings.__dict__, "node", hasty)
        over = threading.Event()

        def drips():
            while not over.wait(0.1):
                yield b"-"

        timer = threading.Timer(60, over.set)
        timer.start()
        try:
            code = client.post(
                "dicom-web/studies", content=drips(), headers={"Content-Type": TYPE}
            ).status_code
        except httpx.WriteError:  # the server has hung up while we were sending
            code = 408
        was_over = over.is_set()
        timer.cancel()
        assert post(running, instance()[1]).status_code == 200
        assert notes(running) == [(0, 0, "HTTP 408"), (1, 0, None)]

    assert (code, was_over) == (408, False)


def test_what_is_too_large_is_refused_before_it_is_read(tmp_path):
    limits = {"stow_bytes": 8 << 20, "stow_part_bytes": 1 << 20}
    sent = []

    def endless():
        yield opening("xyz", "application/dicom", first=True)
        for _ in range(1000):
            sent.append(1)
            yield bytes(1 << 20)

    with site(tmp_path, stow=True, **limits) as running, running.client("sender") as client:
        headers = {"Content-Type": TYPE}
        refused = client.post("dicom-web/studies", content=bytes(9 << 20), headers=headers)
        assert refused.status_code == 413
        try:
            code = client.post("dicom-web/studies", content=endless(), headers=headers).status_code
        except httpx.WriteError:  # the server has hung up while we were sending
            code = 413
        small = [instance(number)[1] for number in range(1, 4)]
        assert post(running, *small).status_code == 200

    assert code == 413
    assert len(sent) < 100


def test_who_may_store(tmp_path):
    _, file = instance()
    with site(tmp_path / "a", stow=True) as running:
        assert post(running, file, role=None).status_code == 401
        assert post(running, file, role="viewer").status_code == 403
        for role in ("sender", "operator", "admin"):
            assert post(running, file, role=role).status_code == 200
        with running.client("sender") as sender:
            for path in ("/", "/api/jobs", "/jobs/1", "/metrics"):
                assert sender.get(path).status_code == 403
            assert sender.post("/api/send/off").status_code == 403
    with site(tmp_path / "b") as closed:
        assert post(closed, file).status_code == 404

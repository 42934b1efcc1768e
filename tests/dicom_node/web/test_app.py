"""The status page: what people read, what machines scrape, and nothing about a patient."""

import re
from datetime import UTC, datetime, timedelta

import pytest
from starlette.testclient import TestClient

from dicom_node.states import HeldBy, JobState
from dicom_node.store import open_store
from dicom_node.together import Thrifty
from dicom_node.web import views
from dicom_node.web.app import Probe, create_app
from dicom_node.worker import Worker
from sr_engine.dicom.scanner import PATIENT_ID, PATIENT_NAME
from tests.certificates import Authority
from tests.dicom_node.aged import aged_node
from tests.dicom_node.nodes import copying_engine, queued_node
from tests.rigs import NOW, rig_settings


def client_of(settings, store, *, listening=True, failing=()):
    probe = Probe(
        scp_listening=lambda: listening,
        scp_port=lambda: 11112,
        workers=lambda: 1,
        failing_tasks=lambda: list(failing),
    )
    return TestClient(create_app(settings, store, probe), base_url="http://127.0.0.1")


@pytest.fixture
def node(tmp_path):
    made = queued_node(tmp_path)
    yield made
    made.store.close()


@pytest.fixture
def page(node):
    return client_of(node.settings, node.store)


def test_an_empty_node_says_how_to_send_to_it(tmp_path):
    settings = rig_settings(tmp_path)
    store = open_store(settings.database_url)

    text = client_of(settings, store).get("/").text

    assert "Nothing has been received yet" in text
    assert "SRNODE" in text and "11112" in text
    store.close()


def test_the_table_shows_state_reason_images_and_age(page, node):
    text = page.get("/").text

    assert "QUEUED" in text
    assert f"Complete with {len(node.paths)} slices" in text
    assert "t1_mpr" in text
    assert node.job.series_uid in text
    assert re.search(r"\d+ s ago", text)


def test_a_held_result_says_what_a_person_can_do(page, node):
    Worker(node.settings, node.store, engine=copying_engine(passed=False)).run_once()

    text = page.get(f"/jobs/{node.job.id}").text

    assert "HELD" in text
    assert "The residual is twice the noise." in text
    assert f"dicom-node release {node.job.id}" in text


def test_the_job_page_tells_its_story(page, node):
    Worker(node.settings, node.store, engine=copying_engine()).run_once()

    text = page.get(f"/jobs/{node.job.id}").text

    for event in ("create", "enqueue", "claim", "derive"):
        assert f">{event}</th>" in text
    assert "pacs: pending" in text
    assert node.job.derived_series_uid in text


def test_no_patient_attribute_stands_on_any_page(page, node):
    Worker(node.settings, node.store, engine=copying_engine()).run_once()

    for path in ("/", f"/jobs/{node.job.id}", "/healthz", "/metrics"):
        text = page.get(path).text
        assert PATIENT_NAME not in text and PATIENT_ID not in text
        assert "Phantom hospital" not in text


def test_a_description_cannot_bring_markup_along(tmp_path):
    node = queued_node(tmp_path)
    with node.store.database.transaction() as work:
        work.connection.exec_driver_sql("UPDATE series SET description = '<script>x</script>'")

    text = client_of(node.settings, node.store).get("/").text

    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    node.store.close()


@pytest.mark.parametrize("path", ["/", "/jobs/1", "/jobs/99", "/healthz", "/static/node.css", "/x"])
def test_every_answer_has_the_security_headers(page, path):
    headers = page.get(path).headers

    assert "default-src 'none'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"


@pytest.mark.parametrize("path", ["/", "/jobs/1"])
def test_the_page_obeys_its_own_policy(page, path):
    text = page.get(path).text

    assert "<script" not in text and " style=" not in text and "http://" not in text
    for address in re.findall(r'(?:src|href)="(/[^"]*)"', text):
        assert page.get(address).status_code == 200


def test_only_reading_is_possible(page):
    for method in ("post", "put", "delete", "patch"):
        assert getattr(page, method)("/jobs/1").status_code == 405


def test_an_unknown_job_is_a_page_with_404(page):
    answer = page.get("/jobs/99")

    assert answer.status_code == 404
    assert "there is no job 99" in answer.text


@pytest.mark.parametrize("digits", [10, 30, 5000])
def test_a_number_that_no_job_can_have_is_404(page, digits):
    assert page.get(f"/jobs/{'9' * digits}").status_code == 404


def test_a_healthy_node_answers_200(page):
    answer = page.get("/healthz")

    assert answer.status_code == 200
    assert answer.json()["oldest_queued_s"] >= 0
    assert answer.json() | {"ok": True, "database": "ok", "listening": True} == answer.json()


@pytest.mark.parametrize("trouble", [{"listening": False}, {"failing": ["ledger"]}])
def test_a_node_in_trouble_answers_503(node, trouble):
    assert client_of(node.settings, node.store, **trouble).get("/healthz").status_code == 503


def test_a_full_disk_is_unhealthy(tmp_path):
    node = queued_node(tmp_path, files={"min_free_bytes": 0})
    settings = rig_settings(tmp_path / "state", files={"min_free_bytes": 10**18})

    answer = client_of(settings, node.store).get("/healthz")

    assert (answer.status_code, answer.json()["free_enough"]) == (503, False)
    node.store.close()


@pytest.mark.parametrize(
    ("reserve_bytes", "text"),
    [(10**18, "images are refused"), (0, "images are refused, results wait")],
)
def test_the_page_says_what_a_full_disk_stops(tmp_path, reserve_bytes, text):
    node = queued_node(tmp_path)
    files = {"min_free_bytes": 10**18, "results_reserve_bytes": reserve_bytes}
    client = client_of(rig_settings(tmp_path / "state", files=files), node.store)

    assert f"B: {text}</dd>" in client.get("/").text
    assert client.get("/healthz").json()["free_enough_for_results"] == bool(reserve_bytes)
    use = "results" if reserve_bytes == 0 else "incoming"
    assert f'dicom_node_disk_room_bytes{{use="{use}"}} -' in client.get("/metrics").text
    node.store.close()


def test_the_job_page_says_what_retention_has_deleted(tmp_path):
    with aged_node(tmp_path) as node:
        job = node.received()
        node.store.jobs.transition(node.published().id, "fail", NOW, reason="refused for good")
        node.purge()

        text = client_of(node.settings, node.store).get(f"/jobs/{job.id}").text

    assert re.search(r"Received files</th><td>deleted [-0-9]+ [:0-9]+ UTC: DEAD since", text)
    assert "Result files" in text
    assert "3 of its images were deleted. Send the series to this node again, then:" in text


def test_a_database_that_does_not_answer_is_503_in_one_line(node, page):
    with node.store.database.transaction() as work:
        work.connection.exec_driver_sql("ALTER TABLE job RENAME TO gone")

    health, index = page.get("/healthz"), page.get("/")

    assert (health.status_code, index.status_code) == (503, 503)
    assert "does not answer" in index.text and "Traceback" not in index.text


def test_metrics_are_of_this_moment(page, node):
    text = page.get("/metrics").text

    assert 'dicom_node_jobs{state="QUEUED"} 1.0' in text
    assert "dicom_node_ledger_balanced 1.0" in text
    assert "dicom_node_sending 1.0" in text and "dicom_node_turnaround_overdue 0.0" in text
    assert 'dicom_node_rejection_notes{state="DEAD"} 0.0' in text
    node.store.switches.set("sending", False, datetime.now(UTC))
    assert "dicom_node_sending 0.0" in page.get("/metrics").text


def test_a_ledger_of_a_while_ago_is_not_called_checked_now(node, monkeypatch):
    """An alert says when it has not been counted for long."""
    monkeypatch.setattr(Thrifty, "QUICK_S", -60.0)  # as if to count took a minute
    page, checked = client_of(node.settings, node.store), "dicom_node_ledger_checked_timestamp_s"
    first = [line for line in page.get("/metrics").text.splitlines() if checked in line]

    again = page.get("/metrics").text.splitlines()

    assert "all accounted for" in page.get("/").text
    assert len(first) == 3 and set(first) <= set(again)  # help, type and value


def test_the_place_in_the_queue_and_the_turnaround_are_on_the_page(page, node):
    text = page.get("/").text
    assert "number 1 in the queue" in text
    assert re.search(r"Turnaround</dt>\s*<dd>no result within the hour \(limit 1 h\)", text)
    [row] = page.get("/api/jobs").json()["jobs"]
    assert row["queue"] == {"position": 1, "waits_for": ""}


def test_the_sending_switch_shows(page, node):
    assert re.search(r"Sending</dt>\s*<dd>on", page.get("/").text)

    node.store.switches.set("sending", False, datetime.now(UTC))

    assert re.search(r"Sending</dt>\s*<dd>OFF", page.get("/").text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-3, "0 s"), (59.9, "59 s"), (60, "1 min"), (7199, "1 h"), (172_800, "2 d")],
)
def test_ages_read_like_speech(seconds, text):
    assert views.age_text(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (1500, "1.5 kB"), (2.5e12, "2.5 TB")])
def test_sizes_read_like_speech(count, text):
    assert views.bytes_text(count) == text


@pytest.mark.parametrize("state", JobState)
def test_every_state_has_a_colour(state):
    assert views.LOOKS[state] in ("busy", "good", "look", "bad", "idle")


@pytest.mark.parametrize("held_by", [*HeldBy, None])
def test_every_holder_leads_to_an_advice(held_by):
    told = views.advice(JobState.HELD, held_by, 7)

    assert told is not None and any("cancel 7" in command for command in told.commands)
    assert any("release 7" in command for command in told.commands) == (held_by != HeldBy.GATE)


def test_progress_shows_only_while_the_job_runs(node, page):
    job = node.store.jobs.claim("w", datetime.now(UTC), timedelta(seconds=60))
    node.store.jobs.heartbeat(
        job.job_id, "w", datetime.now(UTC), timedelta(seconds=60), stage="student", progress=0.42
    )

    assert 'value="42"' in page.get("/").text
    assert "student" in page.get(f"/jobs/{job.job_id}").text


@pytest.mark.parametrize(("days", "shown"), [(400, False), (10, True)])
def test_the_page_names_a_certificate_that_ends_soon(tmp_path, days, shown):
    issued = Authority(tmp_path / "ca").issue("node", days=days)
    web = {"certificate": str(issued.certificate), "key": str(issued.key)}
    node = queued_node(tmp_path)
    page = client_of(rig_settings(tmp_path / "state", web=web), node.store).get("/").text

    assert ("web.certificate ends in " in page) == shown
    node.store.close()

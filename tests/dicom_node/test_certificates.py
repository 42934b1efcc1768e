"""Somebody hears of a certificate before it ends."""

from datetime import UTC, datetime, timedelta

import pytest
from structlog.testing import capture_logs

from dicom_node import housekeeping, telemetry
from dicom_node.certificates import SOON, validities
from dicom_node.housekeeping import Failures, run_guarded
from tests.certificates import Authority
from tests.rigs import rig_settings

METRIC = "dicom_node_certificate_valid_until_timestamp_seconds"
(TASK,) = (task for task in housekeeping.PERIODIC if task.name == "certificates")


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("ca"))


def settings_with(tmp_path, authority, days):
    issued = authority.issue(f"node{days}", days=days)
    web = {"certificate": str(issued.certificate), "key": str(issued.key)}
    return rig_settings(tmp_path / "state", tls=issued.section, web=web)


def test_every_configured_file_is_looked_at(tmp_path, authority):
    found = validities(settings_with(tmp_path, authority, 400))

    assert [one.use for one in found] == ["tls.certificate", "tls.ca", "web.certificate"]
    assert validities(rig_settings(tmp_path / "state")) == []


@pytest.mark.parametrize(
    ("days", "text"), [(400, ""), (20, "ends in 19 days"), (-1, "has expired on")]
)
def test_one_that_ends_soon_says_when(tmp_path, authority, days, text):
    one = validities(settings_with(tmp_path, authority, days))[0]
    now = datetime.now(UTC) + timedelta(seconds=1)

    assert one.ends_soon(now) == bool(text) == (days < SOON.days)
    assert text in one.text(now)
    assert abs(one.until - now - timedelta(days=days)) < timedelta(minutes=5)


def test_of_several_in_a_file_the_first_to_end_counts(tmp_path, authority):
    settings = settings_with(tmp_path, authority, 400)
    short = authority.issue("short", days=3).certificate
    with open(settings.web.certificate, "a") as file:
        file.write(short.read_text())

    assert validities(settings)[2].until - datetime.now(UTC) < timedelta(days=4)


def test_the_task_exports_it_and_warns(tmp_path, authority):
    settings = settings_with(tmp_path, authority, 5)
    failures = Failures()
    with capture_logs() as logs:
        run_guarded(TASK, None, settings, failures)

    warned = [one["name"] for one in logs if one["event"] == "certificate.ends"]
    assert warned == ["tls.certificate", "tls.ca", "web.certificate"]  # the CA is made for 30 days
    until = telemetry.registry.get_sample_value(METRIC, {"use": "web.certificate"})
    assert failures.names() == []
    assert until == validities(settings)[2].until.timestamp()


def test_a_file_that_is_gone_fails_the_task_until_it_is_back(tmp_path, authority):
    settings = settings_with(tmp_path, authority, 400)
    gone = tmp_path / "gone.pem"
    broken = settings.model_copy(
        update={"web": settings.web.model_copy(update={"certificate": str(gone)})}
    )
    failures = Failures()
    with capture_logs() as logs:
        run_guarded(TASK, None, broken, failures)
    assert failures.names() == ["certificates"]
    (line,) = (one for one in logs if one["event"] == "housekeeping.failed")
    assert line["reason"] == f"web.certificate: {gone}: No such file or directory"
    assert "exc_info" not in line  # no traceback at whoever is on call

    gone.write_bytes(authority.certificate.read_bytes())
    run_guarded(TASK, None, broken, failures)
    assert failures.names() == []

    gone.write_text("no certificate")
    run_guarded(TASK, None, broken, failures)
    assert failures.names() == ["certificates"]

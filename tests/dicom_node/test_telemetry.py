"""Log lines and metrics: JSON, and never anything about a patient."""

import ast
import io
import json
import logging
import warnings
from pathlib import Path

import pytest
import structlog
from prometheus_client import generate_latest

from dicom_node import telemetry
from dicom_node.errors import OutOfSpace


@pytest.fixture
def lines():
    """Return a reader of the JSON lines logged so far; leaves logging as it was."""
    root, stream = logging.getLogger(), io.StringIO()
    handlers, level = root.handlers[:], root.level
    telemetry.configure_logging(stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
    structlog.reset_defaults()


def test_a_line_is_an_event_with_fields_and_a_time(lines):
    telemetry.get_logger().info("series.complete", series="1.2.3", instances=176)

    (line,) = lines()
    assert (line["event"], line["series"], line["instances"]) == ("series.complete", "1.2.3", 176)
    assert line["level"] == "info" and line["at"].endswith("Z")


@pytest.mark.parametrize("name", ["PatientName", "patient_id", "description", "dataset"])
def test_a_field_that_is_not_allowed_is_withheld(lines, name):
    telemetry.get_logger().info("series.complete", **{name: "DOE^JOHN"})

    assert lines()[0][name] == "[withheld]"


def test_no_allowed_field_names_a_patient_attribute():
    words = ("patient", "birth", "sex", "age_", "accession", "institution", "description")

    allowed = telemetry.FIELDS - {"age_s"}
    assert not [name for name in allowed if any(word in name for word in words)]


def test_what_a_library_says_is_not_repeated(lines):
    logging.getLogger("pydicom").warning("Invalid value for VR PN: 'DOE^JOHN'")

    (line,) = lines()
    assert (line["event"], line["logger"], line["level"]) == (
        "library.message",
        "pydicom",
        "warning",
    )
    assert "DOE" not in json.dumps(line)


def test_what_a_library_warns_of_is_not_repeated(lines):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("Invalid value for VR PN: 'DOE^JOHN'", stacklevel=1)

    assert lines()[0]["logger"] == "py.warnings"
    assert "DOE" not in json.dumps(lines())


def test_a_traceback_has_places_but_no_words_of_a_library(lines):
    try:
        raise ValueError("DOE^JOHN is no name")
    except ValueError:
        telemetry.get_logger().exception("job.failed", job=17)

    (line,) = lines()
    assert line["exception"]["type"] == "ValueError"
    assert "test_telemetry.py" in line["exception"]["frames"][0]
    assert "DOE" not in json.dumps(line)


def test_our_own_errors_speak(lines):
    try:
        raise OutOfSpace("5 bytes are free, 10 are needed")
    except OutOfSpace:
        telemetry.get_logger().exception("instance.rejected")

    assert lines()[0]["exception"]["message"] == "5 bytes are free, 10 are needed"


def test_the_error_of_a_library_logger_has_a_type(lines):
    try:
        raise KeyError("DOE^JOHN")
    except KeyError:
        logging.getLogger("pynetdicom").exception("Exception in DOE^JOHN's handler")

    assert lines()[0]["exception"]["type"] == "KeyError"
    assert "DOE" not in json.dumps(lines())


def test_the_ledger_is_exported():
    telemetry.set_ledger({"acknowledged": 5, "held": 5}, balanced=True)
    telemetry.set_jobs({"HELD": 1, "DEAD": 0})

    text = generate_latest(telemetry.registry).decode()
    assert 'dicom_node_ledger_instances{part="held"} 5.0' in text
    assert "dicom_node_ledger_balanced 1.0" in text
    assert 'dicom_node_jobs{state="DEAD"} 0.0' in text


def test_an_unbalanced_ledger_shows():
    telemetry.set_ledger({"acknowledged": 5}, balanced=False)

    assert "dicom_node_ledger_balanced 0.0" in generate_latest(telemetry.registry).decode()


LOGGING = ("debug", "info", "warning", "error", "exception", "critical", "record")
NO_FIELDS = {"exc_info", "event", "now"}


def logged_names():
    """Yield place and name of every field that our code logs or audits."""
    for path in sorted(Path(telemetry.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            by_log = "log" in ast.unparse(node.func.value).lower()
            audited = node.func.attr == "record"
            if node.func.attr in LOGGING and (by_log or audited):
                for keyword in node.keywords:
                    if keyword.arg and keyword.arg not in NO_FIELDS:
                        yield f"{path.name}:{node.lineno}", keyword.arg


def test_every_field_that_our_code_logs_is_allowed():
    names = list(logged_names())

    assert names
    assert [found for found in names if found[1] not in telemetry.FIELDS] == []

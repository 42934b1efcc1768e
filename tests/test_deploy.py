"""What `deploy/` promises, as far as it shows without a Docker daemon or a running systemd."""

import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from dicom_node import telemetry
from dicom_node.housekeeping import PERIODIC
from dicom_node.settings import load_settings
from dicom_node.store.engines import parse_url

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
UNITS = ("dicom-node.service", "dicom-node-worker@.service")
INSTALLED = "/opt/dicom-node/bin/dicom-node"


@pytest.fixture(scope="module")
def compose() -> dict:
    return yaml.safe_load((DEPLOY / "compose.yml").read_text())


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
def test_systemd_finds_no_fault_in_the_units(tmp_path):
    for unit in UNITS:
        text = (DEPLOY / unit).read_text()
        # The verifier asks for the program; it stands where the site installs it, not here.
        (tmp_path / unit).write_text(text.replace(INSTALLED, shutil.which("true")))

    result = subprocess.run(
        ["systemd-analyze", "verify", *(str(tmp_path / unit) for unit in UNITS)],
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize(
    "line",
    ["NoNewPrivileges=yes", "ProtectSystem=strict", "StateDirectory=dicom-node", "User=dicom-node"],
)
def test_a_unit_is_hardened(unit, line):
    assert line in (DEPLOY / unit).read_text().splitlines()


def test_compose_publishes_every_port_on_loopback_only(compose):
    published = [
        port for service in compose["services"].values() for port in service.get("ports", [])
    ]

    assert published
    assert [port for port in published if not port.startswith("127.0.0.1:")] == []


def test_compose_mounts_only_files_that_exist(compose):
    mounts = [
        volume.split(":")[0]
        for service in compose["services"].values()
        for volume in service["volumes"]
    ]
    files = [mount for mount in mounts if mount.startswith(".")]

    assert files
    assert [file for file in files if not (DEPLOY / file).is_file()] == []
    assert {mount for mount in mounts if not mount.startswith(".")} == set(compose["volumes"])


def test_node_and_worker_are_one_image_on_one_state_folder(compose):
    node, worker = compose["services"]["node"], compose["services"]["worker"]

    assert (node["image"], node["volumes"]) == (worker["image"], worker["volumes"])
    assert (node["command"][0], worker["command"][0]) == ("serve", "work")


def test_the_compose_node_and_its_archive_know_each_other(compose):
    settings = load_settings(DEPLOY / "compose-node.toml", {})
    archive = json.loads((DEPLOY / "orthanc.json").read_text())
    node_as_seen = archive["DicomModalities"]["srnode"]
    (pacs,) = settings.peers

    assert (pacs.ae_title, pacs.port) == (archive["DicomAet"], archive["DicomPort"])
    assert (node_as_seen["AET"], node_as_seen["Port"]) == (
        settings.node.ae_title,
        settings.node.port,
    )
    assert {pacs.host, node_as_seen["Host"]} <= set(compose["services"])


def test_the_compose_node_keeps_its_state_in_the_database_beside_it(compose):
    url = parse_url(load_settings(DEPLOY / "compose-node.toml", {}).database_url)
    server = compose["services"][url.host]
    made = server["environment"]

    assert url.drivername == "postgresql+psycopg"
    assert (url.username, url.database) == (made["POSTGRES_USER"], made["POSTGRES_DB"])
    assert "ports" not in server
    for name in ("node", "worker"):
        given = compose["services"][name]["environment"]["PGPASSWORD"]
        assert given == made["POSTGRES_PASSWORD"]
    # Nobody starts it with a password that stands in a public file.
    assert url.password is None and given.startswith("${DATABASE_PASSWORD:?")
    assert compose["services"]["node"]["depends_on"][url.host]["condition"] == "service_healthy"


def test_the_image_brings_the_driver_of_postgresql():
    assert ".[postgresql]" in (DEPLOY / "Dockerfile").read_text()


def test_the_image_runs_without_root_and_tells_its_health():
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    steps = [line.split()[0] for line in lines if re.match(r"[A-Z]+ ", line)]

    assert steps[0] == "FROM"
    assert "HEALTHCHECK" in steps
    assert [line for line in lines if line.startswith("USER ")] == ["USER dicomnode"]
    assert steps.index("USER") < steps.index("ENTRYPOINT")


def test_the_image_is_built_from_files_that_exist():
    copied = [
        source
        for line in (DEPLOY / "Dockerfile").read_text().splitlines()
        if line.startswith("COPY ")
        for source in line.split()[1:-1]
    ]
    let_in = (ROOT / ".dockerignore").read_text().splitlines()

    assert copied
    assert [source for source in copied if not (ROOT / source).exists()] == []
    assert [source for source in copied if f"!{source}" not in let_in] == []


def test_every_alert_says_what_to_do():
    groups = yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"]]

    assert rules
    for rule in rules:
        assert set(rule) >= {"alert", "expr", "labels", "annotations"}, rule
        assert {"summary", "action"} <= set(rule["annotations"]), rule["alert"]


def test_alerts_use_only_metrics_that_the_node_exports():
    telemetry = (ROOT / "dicom_node/telemetry.py").read_text()
    exported = set(re.findall(r'"(dicom_node_\w+)"', telemetry))
    used = set(re.findall(r"\bdicom_node_\w+", (DEPLOY / "alerts.yml").read_text()))
    base_names = {re.sub(r"_(total|bucket|count|sum)$", "", name) for name in used}

    assert used
    assert base_names - {re.sub(r"_total$", "", name) for name in exported} == set()


def alert(name: str) -> dict:
    groups = yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"]
    (rule,) = [rule for group in groups for rule in group["rules"] if rule["alert"] == name]
    return rule


@pytest.mark.parametrize("balanced", [True, False])
def test_an_unbalanced_ledger_pages(balanced):
    telemetry.set_ledger({"acknowledged": 5}, balanced=balanced)
    rule = alert("LedgerUnbalanced")
    metric, operator, limit = rule["expr"].split()

    value = telemetry.registry.get_sample_value(metric)

    assert (operator, value == float(limit)) == ("==", not balanced)
    assert rule["labels"]["severity"] == "page"


def test_a_ledger_that_is_no_longer_computed_pages():
    telemetry.set_ledger({"acknowledged": 5}, balanced=True)
    age = re.fullmatch(r"time\(\) - (\w+) > (\d+)", alert("LedgerNotChecked")["expr"])

    checked = telemetry.registry.get_sample_value(age[1])
    every_s = {task.name: task.every_s for task in PERIODIC}["ledger"]

    assert abs(time.time() - checked) < 10
    assert every_s == 60 and int(age[2]) > 2 * every_s

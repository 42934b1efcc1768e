"""The command line: exit codes, one line on stderr, one JSON document on stdout."""

import json
import os
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import Path

import pytest
import sqlalchemy as sa
import structlog

from benchmarks.years import add
from dicom_node import signing
from dicom_node.cli import main, operations
from dicom_node.network.archive import LoopbackArchive
from dicom_node.states import JobState
from dicom_node.store import schema
from dicom_node.worker import Worker
from sr_engine import cli as engine_cli
from sr_engine.dicom.provenance import CREATOR, GROUP
from sr_engine.dicom.reader import read_series
from sr_engine.dicom.seal import KEY, Signer
from tests import phantoms
from tests.certificates import Authority
from tests.dicom_node.nodes import copying_engine, queued_node

ROOT = Path(__file__).resolve().parents[2]
LISTED = {
    "series_uid",
    "modality",
    "description",
    "instances",
    "state",
    "reason",
    "derived_series_uid",
    "deliveries",
}


@pytest.fixture
def node(tmp_path):
    made = queued_node(tmp_path)
    yield made
    made.store.close()


@pytest.fixture
def run(tmp_path, capsys, monkeypatch):
    """Run one command on the state of `node`; return code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DICOM_NODE__FILES__MIN_FREE_BYTES", "0")

    def call(*arguments):
        name, *rest = map(str, arguments)
        capsys.readouterr()
        try:
            code = main([name, "--state-dir", str(tmp_path / "state"), *rest])
        except SystemExit as error:
            code = error.code
        out, err = capsys.readouterr()
        return code, out, err

    yield call
    structlog.reset_defaults()  # the streams of this test end with it


@pytest.mark.parametrize(
    ("program", "command"), [("dicom-node", main), ("sr-engine", engine_cli.main)]
)
def test_the_version_is_that_of_the_package(program, command, capsys):
    with pytest.raises(SystemExit) as ended:
        command(["--version"])

    assert ended.value.code == 0
    assert capsys.readouterr().out == f"{program} {metadata.version('dicom-node')}\n"


def test_jobs_json_is_the_contract(node, run):
    Worker(node.settings, node.store, engine=copying_engine()).run_once()

    code, out, err = run("jobs", "--json")

    (row,) = json.loads(out)
    assert (code, err) == (0, "")
    assert set(row) == LISTED
    assert (row["state"], row["modality"], row["instances"]) == ("DERIVED", "MR", len(node.paths))
    counts = {"sent", "warned", "failed", "committed"}
    assert set(row["deliveries"][0]) == {"destination", "state"} | counts


def test_jobs_json_of_an_empty_node_is_an_empty_list(run):
    assert run("jobs", "--json")[:2] == (0, "[]\n")


def test_jobs_for_people_is_a_table(node, run):
    code, out, _ = run("jobs")

    assert code == 0
    head, row, said = out.splitlines()
    names = "JOB STATE AGE PRIORITY QUEUE IMAGES DELIVERIES DESCRIPTION REASON"
    assert head.split() == names.split()
    assert row.split()[:2] == ["1", "QUEUED"] and "t1_mpr" in row
    assert said == (
        "1 series; nothing waits for a person; 0 running; 1 queued; 0 being sent; sending on"
    )


def test_jobs_for_people_shows_the_newest_of_what_is_over(node, run, monkeypatch):
    Worker(node.settings, node.store, engine=copying_engine()).run_once()
    add(node.store, 1000, 3)  # delivered
    monkeypatch.setattr(operations, "MOST_OVER", 2)

    _, cut, _ = run("jobs")
    _, whole, _ = run("jobs", "--all")

    *table, left_out, said = cut.splitlines()
    assert [line.split()[:2] for line in table[1:]] == [
        ["1001", "DELIVERED"], ["1002", "DELIVERED"], ["1", "DERIVED"],
    ]  # fmt: skip
    assert left_out == (
        "1 older series that are done with are not shown: dicom-node jobs --all lists them"
    )
    assert said.startswith("4 series; ")
    assert [line.split()[0] for line in whole.splitlines()[1:-1]] == ["1000", "1001", "1002", "1"]


@pytest.mark.parametrize("by_series_uid", [False, True])
@pytest.mark.parametrize("form", [("cancel",), ("jobs", "cancel")])
def test_a_job_is_cancelled_and_requeued_by_number_or_series(node, run, form, by_series_uid):
    job = node.job.series_uid if by_series_uid else node.job.id

    assert run(*form, job)[:2] == (0, f"job {node.job.id} is CANCELLED\n")
    assert run("requeue", job)[0] == 0
    assert node.job.state is JobState.QUEUED


def test_release_publishes_a_doubtful_result(node, run):
    Worker(node.settings, node.store, engine=copying_engine(passed=False)).run_once()

    assert run("release", node.job.id)[0] == 0
    assert node.job.state is JobState.DERIVED


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("requeue", "99"), 1, "there is no job 99"),
        (("cancel", "1.2.3"), 1, "1.2.3"),
        (("release", "1"), 1, "QUEUED, not HELD"),
        (("requeue", "1"), 1, "not allowed in state QUEUED"),
        (("provenance", "no-such-file"), 1, "no-such-file"),
        (("explain", "no-such-file"), 1, "no-such-file"),
        (("submit", "no-such-file"), 1, "no-such-file"),
        (("echo", "nobody"), 1, "nobody"),
        (("check-config", "no-such-file"), 1, "no-such-file"),
        (("jobs", "--config", "no-such-file"), 2, "no-such-file"),
        (("jobs", "cancel"), 2, "which JOB"),
        (("jobs", "frobnicate", "1"), 2, "frobnicate"),
        (("send", "maybe"), 2, "maybe"),
        (("serve", "--workers", "many"), 2, "many"),
        (("frobnicate",), 2, "frobnicate"),
    ],
)
def test_a_refusal_is_one_line_and_its_exit_code(node, run, arguments, code, words):
    got, out, err = run(*arguments)

    assert (got, out) == (code, "")
    assert len(err.splitlines()) == 1
    assert words in err


def test_an_internal_failure_is_one_line_that_names_a_log_without_patient_data(
    node, run, monkeypatch
):
    def broken(arguments):
        raise ValueError("Doe^Jane")

    monkeypatch.setattr("dicom_node.cli.operations.verify", broken)

    code, out, err = run("verify")

    assert (code, out, len(err.splitlines())) == (3, "", 1)
    log = Path(err.split()[-1])
    assert "ValueError" in log.read_text()
    assert "Doe" not in err + log.read_text()
    log.unlink()


def test_submit_takes_files_in_as_if_they_had_been_received(run, tmp_path):
    paths = phantoms.corner_series(tmp_path / "scan").paths

    assert run("submit", tmp_path / "scan")[:2] == (
        0,
        f"{len(paths)} new, 0 known already, 0 refused\n",
    )
    assert run("submit", *paths[:2])[1] == "0 new, 2 known already, 0 refused\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files that others cannot use")
@pytest.mark.parametrize("command", [("submit", "."), ("purge",)])
def test_root_makes_nothing_in_somebody_elses_state_folder(node, run, tmp_path, command):
    os.chown(tmp_path / "state", 65534, -1)

    code, out, err = run(*command)

    assert (code, out) == (1, "") and len(err.splitlines()) == 1
    assert "runuser -u" in err


def test_submit_goes_on_after_a_refused_file_and_says_so(run, tmp_path):
    paths = phantoms.corner_series(tmp_path / "scan").paths
    (tmp_path / "scan" / "0000.txt").write_text("no DICOM")

    code, out, err = run("submit", tmp_path / "scan")

    assert (code, out) == (1, f"{len(paths)} new, 0 known already, 1 refused\n")
    assert "0000.txt" in err and len(err.splitlines()) == 1


def test_explain_decides_like_the_live_node(node, run, tmp_path):
    config = tmp_path / "rules.toml"
    config.write_text(
        "[assembly]\nmin_slices = 2\n"
        '[[rules]]\nname = "any MR"\nwhen = { modality = ["MR"] }\naction = "enhance"\n'
    )

    code, out, err = run("explain", tmp_path / "scan", "--json", "--config", config)

    (told,) = json.loads(out)
    assert (code, err) == (0, "")
    assert (told["decision"], told["rule"], told["state"]) == ("enhance", "any MR", "QUEUED")
    assert told["reason"] == node.job.reason
    assert not (tmp_path / "elsewhere").exists()


def test_explain_has_one_answer_per_series_and_one_for_people(run, tmp_path):
    phantoms.corner_series(tmp_path / "scan" / "a")
    phantoms.corner_series(tmp_path / "scan" / "b", SeriesDescription="other")

    code, out, _ = run("explain", tmp_path / "scan")

    assert code == 0
    assert out.count("decision  skip") == 2
    assert "assembly.min_slices" in out


def test_explain_keeps_nothing(run, tmp_path):
    phantoms.corner_series(tmp_path / "scan")

    run("explain", tmp_path / "scan")

    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_provenance_tells_how_an_instance_was_made(node, run, form):
    Worker(node.settings, node.store, engine=copying_engine()).run_once()
    path = node.store.jobs.derived(node.job.id)[0].path

    code, out, err = run("provenance", path, *form)

    assert (code, err) == (0, "")
    assert node.job.series_uid in out
    assert not form or json.loads(out)["bundle_sha256"] == node.job.weights_sha256


@pytest.fixture
def signed(node, tmp_path):
    """Return the public key of the node and a file that it signed."""
    key = signing.own_key(tmp_path / "state")
    signer = Signer(key=signing.public_text(key), sign=key.sign)
    derived = phantoms.derive(read_series(node.paths), tmp_path / "signed", signer=signer)
    return signer.key, derived.written.paths[0]


def test_a_signature_is_checked_with_the_public_key_that_is_asked_for(run, signed):
    key, path = signed

    code, out, _ = run("provenance", path, "--verify", key, "--json")
    told = json.loads(out)

    assert (code, told["signature"]["valid"], told["signature"]["key"]) == (0, True, key)
    assert run("public-key")[1].strip() == key
    assert run("provenance", path, "--verify", "own")[0] == 0
    assert json.loads(run("provenance", path, "--json")[1])["signature"]["valid"] is None
    chain = {link["of"]: link["sha256"] for link in told["chain"]}
    assert chain["provenance"] == told["sha256"]
    assert chain["result"] == told["result_sha256"]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda d: setattr(d, "WindowWidth", 3), "does not fit"),
        (lambda d: setattr(d, "PixelData", bytes(len(d.PixelData))), "does not fit"),
        (lambda d: d.private_block(GROUP, CREATOR)[KEY].clear(), "is not signed"),
    ],
)
def test_a_changed_file_fails_its_signature(spoil, said, run, signed):
    key, path = signed
    phantoms.edit(path, spoil)

    code, _, err = run("provenance", path, "--verify", key)

    assert code == 1
    assert said in err


def test_another_nodes_file_names_another_key(run, signed):
    code, _, err = run("provenance", signed[1], "--verify", "ab" * 32)

    assert code == 1
    assert f"the file names another key, {signed[0]}" in err


def test_what_is_no_public_key_is_a_usage_error(run, signed):
    code, _, err = run("provenance", signed[1], "--verify", "nonsense")

    assert code == 2
    assert "no Ed25519 public key" in err


def test_provenance_of_a_scanners_image_is_refused(node, run):
    code, _, err = run("provenance", node.paths[0])

    assert code == 1
    assert "carries no" in err


def test_verify_finds_nothing_wrong_with_a_sound_state(node, run):
    Worker(node.settings, node.store, engine=copying_engine()).run_once()

    code, out, err = run("verify", "--json")

    told = json.loads(out)
    assert (code, err, told["problems"], told["balanced"]) == (0, "", [], True)
    assert told["files"] == 2 * len(node.paths)


@pytest.mark.parametrize("derived", [False, True])
@pytest.mark.parametrize("change", ["changed", "missing"])
def test_verify_finds_a_spoilt_file(node, run, derived, change):
    Worker(node.settings, node.store, engine=copying_engine()).run_once()
    kept = node.store.jobs.derived(node.job.id) if derived else node.store.series.all_instances()
    path = kept[3].path
    path.unlink() if change == "missing" else path.write_bytes(path.read_bytes() + b"\0")

    code, out, err = run("verify")

    assert code == 1
    assert str(path) in out and change in out
    assert len(err.splitlines()) == 1


def test_verify_finds_an_instance_that_is_not_accounted_for(node, run):
    with node.store.database.transaction() as work:
        work.connection.exec_driver_sql("UPDATE series SET acknowledged = acknowledged + 1")

    code, out, _ = run("verify")

    assert code == 1
    assert "does not add up" in out


def test_verify_finds_a_touched_audit_trail(node, run):
    with node.store.database.transaction() as work:
        work.connection.exec_driver_sql("DROP TRIGGER audit_no_update")
        work.connection.exec_driver_sql("UPDATE audit SET event = 'nothing' WHERE id = 2")

    code, out, err = run("verify")

    assert code == 1
    assert "audit row 2 (" in out
    assert "audit row 2 (" in err and len(err.splitlines()) == 1


def test_verify_says_where_the_audit_trail_ends(node, run):
    rows = len(node.store.audit.listing())

    assert json.loads(run("verify", "--json")[1])["audit"] == {
        "rows": rows,
        "head": node.store.audit.prove().head,
    }


@pytest.fixture
def aged(node, monkeypatch):
    """Make everything that has ended old enough to go: the job is CANCELLED."""
    Worker(node.settings, node.store, engine=copying_engine(passed=False)).run_once()
    node.store.jobs.cancel(node.job.id, datetime.now(UTC) - timedelta(days=61))
    with node.store.database.transaction() as work:
        received = datetime.now(UTC) - timedelta(days=61)
        work.execute(sa.update(schema.series).values(last_received_at=received))
    return node


def test_purge_says_what_goes_and_why_and_a_dry_run_says_the_same(aged, run):
    dry, real = run("purge", "--clock-is-right", "--dry-run"), run("purge", "--clock-is-right")

    assert (dry[0], real[0], dry[2], real[2]) == (0, 0, "", "")
    assert dry[1].replace("would be deleted", "deleted") == real[1]
    count = len(aged.paths)
    for kind in ("originals", "derived"):
        assert re.search(
            rf"^{aged.job.id} +{kind} +{count} +[0-9.]+ +CANCELLED since", dry[1], re.M
        )
    assert "retention.cancelled_days = 60" in dry[1]
    assert f"{2 * count} files" in dry[1]
    assert run("purge", "--clock-is-right")[1].startswith("0 files")


def test_purge_asks_whether_the_clock_is_right_where_the_trail_ends_long_ago(aged, run):
    code, out, err = run("purge")

    assert (code, out) == (1, "") and "--clock-is-right" in err
    assert "days before or after" in err


def test_purge_for_programs_is_one_document(aged, run):
    told = json.loads(run("purge", "--clock-is-right", "--dry-run", "--json")[1])

    assert (told["dry_run"], told["files"]) == (True, 2 * len(aged.paths))
    assert {lot["kind"] for lot in told["lots"]} == {"originals", "derived"}
    assert all(lot["reason"] for lot in told["lots"])


def test_purge_refuses_while_retention_is_off(aged, run, monkeypatch):
    monkeypatch.setenv("DICOM_NODE__RETENTION__ENABLED", "false")

    code, out, err = run("purge", "--clock-is-right")

    assert (code, out) == (1, "")
    assert "retention is off" in err


def test_verify_knows_deleted_from_missing(aged, run):
    originals = [row.path for row in aged.store.series.all_instances()]
    content = originals[0].read_bytes()
    run("purge", "--clock-is-right")

    code, out, err = run("verify")
    assert (code, err) == (0, "")
    assert f"{2 * len(aged.paths)} files are not to be here: deleted by retention" in out
    told = json.loads(run("verify", "--json")[1])
    assert (told["files"], told["deleted_by_retention"]) == (0, 2 * len(aged.paths))

    originals[0].parent.mkdir()
    originals[0].write_bytes(content)
    code, out, _ = run("verify")
    assert code == 1
    assert f"{originals[0]}: deleted by retention, but it is there" in out


def test_a_job_without_files_says_so_until_its_series_is_submitted_again(aged, run):
    run("purge", "--clock-is-right")
    code, _, err = run("requeue", aged.job.id)
    assert code == 1
    assert f"{len(aged.paths)} of its {len(aged.paths)} received images were deleted" in err

    assert f"{len(aged.paths)} kept again" in run("submit", aged.paths[0].parent)[1]

    assert run("requeue", aged.job.id)[:2] == (0, f"job {aged.job.id} is QUEUED\n")
    assert run("verify")[0] == 0


def test_the_sending_switch(node, run):
    assert run("send")[1] == "sending is on\n"
    assert run("send", "off")[1] == "sending is off\n"
    assert run("send")[1] == "sending is off\n"
    assert node.store.switches.get("sending", True) is False


def test_echo_reaches_a_peer(run, tmp_path):
    with LoopbackArchive(tmp_path / "archive") as archive:
        config = tmp_path / "peers.toml"
        config.write_text(
            '[[peers]]\nname = "pacs"\nae_title = "ARCHIVE"\nhost = "127.0.0.1"\n'
            f'port = {archive.port}\nroles = ["destination"]\n'
        )
        assert run("echo", "--config", config, "pacs")[0] == 0
    code, _, err = run("echo", "--config", config, "pacs")

    assert code == 1
    assert "no connection" in err or "unreachable" in err


def test_check_config_accepts_the_manual(run):
    code, out, _ = run("check-config", ROOT / "config" / "node.toml")

    assert code == 0
    assert "accepted" in out


def test_check_config_says_what_opens_the_node_to_others(run, tmp_path):
    config = tmp_path / "open.toml"
    config.write_text('[node]\nhost = "0.0.0.0"\n')

    assert "beyond this machine" in run("check-config", config)[1]


def test_check_config_reads_the_certificates(run, tmp_path):
    issued = Authority(tmp_path).issue("node")
    names = ("certificate", "key", "ca")
    lines = "".join(f'{name} = "{getattr(issued, name)}"\n' for name in names)
    config = tmp_path / "node.toml"
    config.write_text(f"[tls]\n{lines}")

    assert run("check-config", config)[0] == 0
    issued.key.chmod(0o644)
    code, _, err = run("check-config", config)

    assert code == 1
    assert f"tls.key = {issued.key}: mode 0644 opens the key to others" in err


def test_check_config_names_peers_without_tls(run, tmp_path):
    config = tmp_path / "node.toml"
    config.write_text('[[peers]]\nname = "mr"\nae_title = "MR1"\nhost = "192.0.2.7"\n')

    assert "mr is served and called without TLS" in run("check-config", config)[1]


def test_check_config_refuses_an_unknown_key(run, tmp_path):
    config = tmp_path / "bad.toml"
    config.write_text("[assembly]\nidle = 3\n")

    code, _, err = run("check-config", config)

    assert code == 1
    assert "assembly.idle" in err and "idle_s" in err


def test_node_toml_of_the_working_folder_is_the_default(run, tmp_path):
    (tmp_path / "node.toml").write_text("[nodes]\n")

    assert run("jobs")[0] == 2


def test_a_reader_that_stops_reading_is_no_failure(node):
    reading, writing = os.pipe()
    os.close(reading)

    done = subprocess.run(
        [sys.executable, "-m", "dicom_node.cli", "jobs", "--json"]
        + ["--state-dir", str(node.settings.node.state_dir)],
        cwd=ROOT,
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writing)

    assert done.stderr == ""

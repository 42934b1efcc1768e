"""The service as processes: start, refuse, keep workers alive, drain, die."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from dicom_node.network import scu
from dicom_node.service import BACKOFF_S, Seat, WorkerPool
from dicom_node.settings import make_settings
from tests.rigs import SOURCE, destination, write_series

ROOT = Path(__file__).resolve().parents[2]
START_S = 120  # on a busy machine


def wait_for(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError("it did not happen in time")


def children(pid):
    listing = subprocess.run(
        ["ps", "-o", "pid=,args=", "--ppid", str(pid)], capture_output=True, text=True
    ).stdout
    lines = [line.split(None, 1) for line in listing.splitlines()]
    return [int(pid) for pid, command in lines if "work --managed" in command]


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "zombie" not in Path(f"/proc/{pid}/status").read_text()


class Running:
    """`dicom-node serve` as a process."""

    def __init__(self, folder, workers=0, options=(), **node):
        folder.mkdir(exist_ok=True)
        self.config = folder / "node.toml"
        values = {"port": 0, "state_dir": str(folder / "state"), "drain_s": 5.0} | node
        lines = "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items())
        peer = 'name = "mr"\nae_title = "MR1"\nhost = "127.0.0.1"\nroles = ["source"]\n'
        self.config.write_text(f"[node]\n{lines}[web]\nport = 0\n[[peers]]\n{peer}")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dicom_node.cli", "serve", "--config", str(self.config)]
            + ["--workers", str(workers), *options],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=(folder / "log").open("w"),
            text=True,
        )
        self.log = folder / "log"

    def addresses(self):
        receiving = self.process.stdout.readline()
        page = self.process.stdout.readline()
        assert receiving.startswith("receiving"), self.log.read_text()
        self.port = int(receiving.rpartition(":")[2])
        self.page = page.split()[-1]
        return self

    def health(self):
        with urllib.request.urlopen(f"{self.page}healthz", timeout=5) as answer:
            return json.load(answer)

    def end(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


@pytest.fixture
def serving(tmp_path):
    started = []

    def start(name="node", **options):
        running = Running(tmp_path / name, **options)
        started.append(running)
        return running

    yield start
    for running in started:
        running.end()


def test_it_serves_until_sigterm_and_then_drains(serving):
    node = serving(workers=1).addresses()
    scu.echo(destination(node.port), "MR1")
    assert node.health()["ok"]
    assert node.health()["workers"] == 1
    (worker,) = children(node.process.pid)

    node.process.terminate()

    assert node.process.wait(30) == 0
    assert not alive(worker)
    assert "service.stop" in node.log.read_text()


def test_what_it_received_is_there_after_kill_9(serving, tmp_path):
    node = serving().addresses()
    items = write_series(tmp_path / "scan", 3)
    outcomes = list(scu.send(items, destination(node.port), "MR1"))
    assert [outcome.fault for outcome in outcomes] == [0, 0, 0]
    node.process.kill()
    node.process.wait()

    listed = subprocess.run(
        [sys.executable, "-m", "dicom_node.cli", "verify", "--json", "--config", node.config],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )

    assert listed.returncode == 0, listed.stderr
    assert json.loads(listed.stdout)["ledger"]["acknowledged"] == 3


def test_a_worker_that_dies_is_started_again(serving):
    node = serving(workers=1).addresses()
    (first,) = wait_for(lambda: children(node.process.pid))

    os.kill(first, signal.SIGKILL)

    wait_for(lambda: children(node.process.pid) not in ([], [first]))
    assert "worker.died" in node.log.read_text()


def test_workers_end_with_a_service_that_is_killed(serving):
    node = serving(workers=1).addresses()
    (worker,) = wait_for(lambda: children(node.process.pid))

    node.process.kill()

    wait_for(lambda: not alive(worker))


def test_a_second_sigterm_ends_it_at_once(serving):
    node = serving(workers=1, drain_s=60.0).addresses()
    with socket.create_connection(("127.0.0.1", node.port)):
        (worker,) = wait_for(lambda: children(node.process.pid))
        os.kill(worker, signal.SIGSTOP)  # a worker that cannot drain
        node.process.terminate()
        wait_for(lambda: "service.drain" in node.log.read_text())

        node.process.terminate()

        assert node.process.wait(10) == 128 + signal.SIGTERM
    wait_for(lambda: not alive(worker))


def one_line_refusal(node, code=1):
    assert node.process.wait(START_S) == code
    lines = [line for line in node.log.read_text().splitlines() if not line.startswith("{")]
    assert len(lines) == 1
    return lines[0]


def test_a_second_node_on_the_same_state_folder_is_refused(serving):
    serving().addresses()

    assert "another node is running on" in one_line_refusal(serving())


def test_a_second_node_on_the_same_server_is_refused_until_the_first_is_killed(serving, postgresql):
    with postgresql.database() as url:
        first = serving("one", database=url).addresses()
        assert "another node is running on this database" in one_line_refusal(
            serving("two", database=url)
        )
        first.process.kill()
        first.process.wait()
        third = serving("three", database=url).addresses()
        third.process.kill()
        third.process.wait()


def test_a_taken_port_is_refused_in_one_line(serving):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        assert f"127.0.0.1:{port}" in one_line_refusal(serving(port=port))


def test_an_impossible_configuration_is_refused_in_one_line(serving):
    assert "node.ae_titel" in one_line_refusal(serving(ae_titel="X"), code=2)


def test_a_worker_that_always_dies_is_started_ever_more_rarely(tmp_path):
    pool = WorkerPool(make_settings({"node": {"state_dir": str(tmp_path)}}), 1)
    seat = Seat()
    delays = []
    for _ in range(len(BACKOFF_S) + 2):
        process = subprocess.Popen(["true"], stdin=subprocess.PIPE)
        process.wait()
        now = time.monotonic()
        seat.started_at = now
        pool._bury(seat, process, now)
        delays.append(seat.not_before - now)

    assert delays == pytest.approx([*BACKOFF_S, BACKOFF_S[-1], BACKOFF_S[-1]])


def test_a_worker_that_cannot_be_started_does_not_end_the_service(tmp_path, monkeypatch):
    def refuse(settings):
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr("dicom_node.service.start_worker", refuse)
    pool = WorkerPool(make_settings({"node": {"state_dir": str(tmp_path)}}), 1)

    assert pool.tend() is False and pool.alive() == 0
    [seat] = pool._seats
    assert seat.failures == 1 and seat.not_before > time.monotonic() + 0.5 * BACKOFF_S[0]
    assert pool.tend() is False and seat.failures == 1  # not before its time


def test_settings_reach_a_worker_unchanged(tmp_path):
    rule = {
        "name": "r",
        "when": {"field_strength_t": "absent", "contrast": ["T1"]},
        "not": {"body_part": ["head"]},
        "action": "hold",
    }
    settings = make_settings(
        {"node": {"state_dir": str(tmp_path)}, "peers": [SOURCE], "rules": [rule]}
    )

    assert type(settings).model_validate_json(settings.model_dump_json()) == settings


@pytest.mark.parametrize("module", ["dicom_node.service", "dicom_node.cli", "dicom_node.demo"])
def test_the_service_leaves_the_engine_unloaded(module):
    heavy = ("torch", "SimpleITK", "highdicom", "nilearn")
    program = f"import sys, {module}; print([n for n in {heavy} if n in sys.modules])"

    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)

    assert done.stdout.strip() == "[]", done.stderr


def test_shadow_mode_is_told_at_the_start(tmp_path):
    node = Running(tmp_path / "node", options=["--shadow"])
    try:
        node.addresses()
        assert node.process.stdout.readline() == "shadow mode  nothing is sent\n"
        with urllib.request.urlopen(f"{node.page}metrics", timeout=20) as reply:
            assert b"dicom_node_sending 0.0" in reply.read()
    finally:
        node.process.terminate()
        assert node.process.wait(60) == 0

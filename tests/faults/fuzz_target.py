"""The node that is attacked: a process of its own, with everything it may touch in one folder."""

import json
import os
import re
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[2]
KB = 1024

CONFIG = """
[node]
port = 0
state_dir = "{state}"
acse_timeout_s = 3.0
network_timeout_s = 3.0
max_associations = 100
[limits]
associations_per_peer = 60
pdu_s = 3.0
message_bytes = 8388608
pdu_bytes = 1048576
[web]
port = 0
[files]
min_free_bytes = 0
[assembly]
idle_s = 2.0
[sending]
backoff_first_s = 1.0
max_attempts = 2
[[peers]]
name = "scanner"
ae_title = "MR1"
host = "127.0.0.1"
port = 1
roles = ["source"]
[[peers]]
name = "probe"
ae_title = "PROBE"
host = "127.0.0.1"
port = 1
roles = ["source"]
"""
QUIET = ("library.message", "thread.died")  # of pynetdicom's threads, which end an association
HANDLED = ("LimitExceeded", "ConnectionResetError", "BrokenPipeError", "TimeoutError")
KNOWN = re.compile(
    r"node\.db(-wal|-shm|-journal)?|serve\.lock|signing\.key|tokens\.json|in|out|in/\.locks(/\d{3})?"
    r"|in/[0-9.]{1,64}(/[0-9.]{1,64}\.dcm(\.\d+-\d+\.part)?)?"
)


class Target:
    """`dicom-node serve` without workers, watched from outside; a context manager."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state, self.log = folder / "state", folder / "log"
        for name in ("cwd", "tmp", "home"):
            (folder / name).mkdir(parents=True)
        self.config = folder / "node.toml"
        self.config.write_text(CONFIG.format(state=self.state))
        self._read_to = 0
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                self._command("serve", "--workers", "0"),
                cwd=folder / "cwd", env=self._environment(), stdout=subprocess.PIPE, stderr=log,
            )  # fmt: skip
        self.port = self._said("receiving")
        self.web = self._said("status page")

    def _said(self, start: str) -> int:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().decode()
        assert line.startswith(start), self.log.read_text()
        return int(line.strip().rstrip("/").rpartition(":")[2])

    def _command(self, *arguments: str) -> list[str]:
        name, *options = arguments
        program = [sys.executable, "-m", "dicom_node.cli", name]
        return [*program, "--config", str(self.config), *options]

    def _environment(self) -> dict[str, str]:
        places = {"TMPDIR": str(self.folder / "tmp"), "HOME": str(self.folder / "home")}
        return {**os.environ, **places, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}

    @property
    def exit_code(self) -> int | None:
        """Return with what the process ended; None while it runs."""
        return self._process.poll()

    def status(self, name: str) -> int:
        """Return one number of /proc/PID/status: VmRSS and VmHWM in kB, Threads."""
        text = Path(f"/proc/{self._process.pid}/status").read_text()
        found = re.search(rf"^{name}:\s+(\d+)", text, re.MULTILINE)
        return int(found.group(1)) if found else 0

    def rss_mb(self) -> float:
        """Return the memory that is resident now."""
        return round(self.status("VmRSS") / KB, 1)

    def peak_mb(self) -> float:
        """Return the most memory that was ever resident."""
        return round(self.status("VmHWM") / KB, 1)

    def open_files(self) -> int:
        """Return how many file descriptors the node has, besides what it holds open on purpose."""
        everything = len(os.listdir(f"/proc/{self._process.pid}/fd"))
        return everything - self.open_folders() - self.open_locks()

    def open_folders(self) -> int:
        """Return how many folders of series it holds open: a few, so that syncing costs less."""
        return (
            sum(not path.endswith((".dcm", ".part")) for path in self._held()) - self.open_locks()
        )

    def open_locks(self) -> int:
        """Return how many lock files it holds open, each of them at most once."""
        return sum("/.locks/" in path for path in self._held())

    def _held(self) -> list[str]:
        """Return what it has open below its folder of received files."""
        received, held = f"{self.state / 'in'}/", []
        for descriptor in Path(f"/proc/{self._process.pid}/fd").iterdir():
            with suppress(OSError):  # closed meanwhile
                held.append(os.readlink(descriptor).removesuffix(" (deleted)"))
        return [path for path in held if path.startswith(received)]

    def strays(self) -> list[str]:
        """Return every file that should not be: outside the state folder, or of an odd name."""
        ours = {"cwd", "tmp", "home", "node.toml", "log", "state"}
        found = [each.name for each in self.folder.iterdir() if each.name not in ours]
        for name in ("cwd", "tmp", "home"):
            found += [
                str(each.relative_to(self.folder)) for each in (self.folder / name).rglob("*")
            ]
        found += [str(each) for each in Path("/tmp").glob("fuzz-escaped*")]
        inside = (str(each.relative_to(self.state)) for each in self.state.rglob("*"))
        return found + [name for name in inside if not KNOWN.fullmatch(name)]

    def complaints(self) -> list[str]:
        """Return the new log lines that no refusal explains."""
        with self.log.open("rb") as log:
            log.seek(self._read_to)
            new = log.read()
        whole, _, _ = new.rpartition(b"\n")
        self._read_to += len(whole) + (1 if whole else 0)
        lines = whole.decode("utf-8", "replace").splitlines()
        text = [line for line in lines if line.strip() and not line.startswith("{")]
        alarms = [line for line in lines if line.startswith("{") and alarming(line)]
        return alarms + (["\n".join(text)] if text else [])

    def verify(self) -> str:
        """Return what `dicom-node verify` finds wrong after the end; nothing when all is well."""
        done = subprocess.run(
            self._command("verify"), cwd=self.folder / "cwd", env=self._environment(),
            capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
        return "" if done.returncode == 0 else (done.stdout + done.stderr)[-2000:]

    def settle(self, threads: int, files: int, seconds: float = 40.0) -> None:
        """Wait until the node has let go of everything, for a while."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.exit_code is None:
            if self.status("Threads") <= threads and self.open_files() <= files:
                return
            time.sleep(0.2)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(40)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


def alarming(line: str) -> bool:
    """Return whether a log line tells of something that nobody handled.

    What pynetdicom and pydicom say of bytes that they cannot decode is handled: the association is
    aborted. Our own code in such a trace is a defect, but for the limits of `transport`, which are
    told as errors of the connection.
    """
    said = json.loads(line)
    trace: Any = said.get("exception")
    if trace:
        frames = [f for f in trace.get("frames", ()) if not f.endswith(" run_and_leave")]
        ours = any("/dicom_node/" in frame for frame in frames)
        return ours and trace.get("type") not in HANDLED
    return said.get("level") in ("error", "critical") and said.get("event") not in QUIET

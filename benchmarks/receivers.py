"""The two receivers of the benchmark as processes: this node, and Orthanc that syncs its files."""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

from tests.integration.partners import ENVIRONMENT, Orthanc, free_port, listens, wait_for

TICK_S = 1 / os.sysconf("SC_CLK_TCK")

CONFIG = """
[node]
port = {port}
state_dir = "{state}"
max_associations = 200
{options}
[web]
port = {web}
[files]
min_free_bytes = 0
[limits]
associations_per_peer = 200
[[peers]]
name = "scanner"
ae_title = "SCANNER"
host = "127.0.0.1"
"""


class NodeReceiver:
    """`dicom-node serve` without workers, on a folder of its own."""

    name, title = "node", "SRNODE"

    def __init__(self, folder: Path, options: str = "") -> None:
        folder.mkdir(parents=True)
        self.folder, self.port, self.web = folder, free_port(), free_port()
        fields = {"port": self.port, "state": folder / "state", "web": self.web}
        (folder / "node.toml").write_text(CONFIG.format(**fields, options=options))
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "dicom_node.cli", "serve", "--workers", "0"]
                + ["--config", str(folder / "node.toml")],
                env=ENVIRONMENT,
                stdout=log,
                stderr=log,
            )
        wait_for("the node listens", lambda: listens(self.port), 300)

    def count(self) -> int:
        """Return how many instances have a row and a file."""
        with sqlite3.connect(self.folder / "state" / "node.db") as connection:
            paths = [row[0] for row in connection.execute("SELECT path FROM instance")]
        return sum(os.path.isfile(path) for path in paths)

    def stop(self) -> None:
        """End the process."""
        end(self.process)


class OrthancReceiver:
    """Orthanc with SyncStorageArea, on a folder of its own."""

    name, title = "orthanc", "ORTHANC"

    def __init__(self, folder: Path) -> None:
        self._orthanc = Orthanc(folder, node_port=free_port()).start()
        self.folder, self.port = folder, self._orthanc.port
        assert self._orthanc.process is not None
        self.process = self._orthanc.process

    def count(self) -> int:
        """Return how many instances it knows."""
        return int(self._orthanc.get("/statistics")["CountInstances"])

    def stop(self) -> None:
        """End the process."""
        end(self.process)


def end(process: subprocess.Popen[bytes]) -> None:
    """Ask the process to end; kill it when it does not: its files are thrown away."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


Receiver = NodeReceiver | OrthancReceiver


def cpu_s(receiver: Receiver) -> float:
    """Return the processor seconds of the receiver and its children, living and waited for."""
    return sum(map(_cpu_s, family(receiver.process.pid)))


def family(pid: int) -> list[int]:
    """Return a process and its descendants."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(each for child in children for each in family(int(child)))]


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) * TICK_S

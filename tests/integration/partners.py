"""Real peers on loopback: Orthanc, dcmtk, and the node itself as its own processes."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pydicom
from pynetdicom import AE

from dicom_node.settings import load_settings
from dicom_node.store import open_store

# Debian's dcmtk and Orthanc wait 40 ms an image without it.
ENVIRONMENT = {**os.environ, "TCP_NODELAY": "1", "OMP_WAIT_POLICY": "PASSIVE"}


def free_port() -> int:
    """Return a TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(what: str, condition: Callable[[], Any], seconds: float, pause: float = 0.2) -> Any:
    """Return the first true value of `condition`; fail the test when `seconds` are over."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(pause)
    raise AssertionError(f"{what}: not within {seconds:g} s")


def listens(port: int) -> bool:
    """Return whether somebody accepts connections on `port`."""
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def find_program(name: str) -> str | None:
    """Return the path of a Debian program; pynetdicom installs others of the same names."""
    return shutil.which(name, path="/usr/bin:/usr/sbin:/bin:/sbin:/usr/local/bin")


PLUGINS = "/usr/share/orthanc/plugins"  # of Debian: all that is installed
DICOMWEB = f"{PLUGINS}/libOrthancDicomWeb.so"  # of its package orthanc-dicomweb


class Orthanc:
    """A real archive with its own folder; knows the node by its AE title."""

    def __init__(
        self,
        folder: Path,
        node_port: int,
        ae_title: str = "ORTHANC",
        *,
        plugins: Sequence[str] = (),  # files or folders; none, because it starts quickly so
    ) -> None:
        self.folder, self.ae_title = folder, ae_title
        self.port, self.http = free_port(), free_port()
        folder.mkdir(parents=True, exist_ok=True)
        self.config = folder / "orthanc.json"
        self.config.write_text(
            json.dumps(
                {
                    "DicomAet": ae_title,
                    "DicomPort": self.port,
                    "HttpPort": self.http,
                    "RemoteAccessAllowed": False,
                    "AuthenticationEnabled": False,
                    "StorageDirectory": str(folder / "db"),
                    "IndexDirectory": str(folder / "db"),
                    "SyncStorageArea": True,
                    "StableAge": 5,
                    "Plugins": list(plugins),
                    "OverwriteInstances": False,
                    "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
                    "DicomModalities": {
                        "node": {"AET": "SRNODE", "Host": "127.0.0.1", "Port": node_port}
                    },
                }
            )
        )
        self.process: subprocess.Popen | None = None

    def start(self) -> "Orthanc":
        """Start it and wait until it answers."""
        log = (self.folder / "orthanc.log").open("ab")
        self.process = subprocess.Popen(
            [find_program("Orthanc"), str(self.config)],
            env=ENVIRONMENT,
            stdout=log,
            stderr=log,
        )
        wait_for("Orthanc answers", lambda: self.answers(), 30)
        return self

    def answers(self) -> bool:
        """Return whether the REST interface and the DICOM port are up."""
        try:
            self.get("/system")
        except (urllib.error.URLError, OSError):
            return False
        return listens(self.port)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End the process."""
        if self.process and self.process.poll() is None:
            self.process.send_signal(how)
            self.process.wait(20)

    @property
    def url(self) -> str:
        """The root of its DICOMweb services."""
        return f"http://127.0.0.1:{self.http}/dicom-web"

    def get(self, path: str) -> Any:
        """Return the JSON of a REST resource."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http}{path}", timeout=20) as reply:
            return json.loads(reply.read())

    def series(self, series_uid: str | None = None) -> list[dict]:
        """Return the series it holds (one of them, by UID)."""
        rows = [self.get(f"/series/{key}") for key in self.get("/series")]
        return [
            row for row in rows if series_uid in (None, row["MainDicomTags"]["SeriesInstanceUID"])
        ]

    def download(self, series: dict, folder: Path) -> list[Path]:
        """Write all instances of a series as files; return their paths."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for key in series["Instances"]:
            url = f"http://127.0.0.1:{self.http}/instances/{key}/file"
            with urllib.request.urlopen(url, timeout=30) as reply:
                path = folder / f"{key}.dcm"
                path.write_bytes(reply.read())
                paths.append(path)
        return paths


class Dcmqrscp:
    """dcmtk's image archive, which knows the node by its AE title, or not."""

    def __init__(self, folder: Path, node_port: int | None) -> None:
        self.folder, self.port, self.ae_title = folder, free_port(), "QRSCP"
        (folder / "db").mkdir(parents=True)
        host = f"node = (SRNODE, 127.0.0.1, {node_port})\n" if node_port else ""
        self.config = folder / "dcmqrscp.cfg"
        self.config.write_text(
            f"NetworkTCPPort = {self.port}\nMaxPDUSize = 16384\nMaxAssociations = 16\n"
            f"HostTable BEGIN\n{host}HostTable END\n"
            "VendorTable BEGIN\nVendorTable END\n"
            f"AETable BEGIN\n{self.ae_title} {folder / 'db'} RW (200, 1024mb) ANY\nAETable END\n"
        )
        self.process: subprocess.Popen | None = None

    def start(self) -> "Dcmqrscp":
        """Start it and wait until it listens."""
        log = (self.folder / "dcmqrscp.log").open("ab")
        command = [find_program("dcmqrscp"), "-v", "-c", str(self.config)]
        self.process = subprocess.Popen(command, env=ENVIRONMENT, stdout=log, stderr=log)
        wait_for("dcmqrscp listens", lambda: listens(self.port), 30)
        return self

    def stop(self) -> None:
        """End the process."""
        if self.process and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(20)


class Node:
    """`dicom-node serve` with a state directory of its own."""

    def __init__(
        self,
        folder: Path,
        *,
        archives: Sequence[Orthanc] = (),
        rules: str = "",
        engine: str = "",
        assembly: str = "idle_s = 1.0",
        extra: str = "",
        port: int | None = None,
        database: str = "",
    ) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.port, self.web = port or free_port(), free_port()
        peers = "".join(
            f'[[peers]]\nname = "{archive.ae_title.lower()}"\nae_title = "{archive.ae_title}"\n'
            f'host = "127.0.0.1"\nport = {archive.port}\nroles = ["source", "destination"]\n'
            "commitment = false\n"
            for archive in archives
        )
        stated = f'database = "{database}"\n' if database else ""
        self.config = folder / "node.toml"
        self.config.write_text(
            f'[node]\nae_title = "SRNODE"\nhost = "127.0.0.1"\nport = {self.port}\n'
            f'state_dir = "{folder / "state"}"\n{stated}\n'
            f'[web]\nhost = "127.0.0.1"\nport = {self.web}\n\n'
            f"[assembly]\n{assembly}\n\n[engine]\n{engine}\n\n{extra}\n"
            f'[[peers]]\nname = "scanner"\nae_title = "SCANNER"\nhost = "127.0.0.1"\nport = 104\n'
            f'roles = ["source"]\n{peers}\n{rules}\n'
        )
        self.process: subprocess.Popen | None = None

    @property
    def log(self) -> Path:
        """The service's and its workers' log."""
        return self.folder / "node.log"

    def start(self, wait: bool = True) -> "Node":
        """Start serving; with `wait`, until associations are accepted."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "dicom_node.cli", "serve", "--config", str(self.config)],
                env=ENVIRONMENT,
                stdout=log,
                stderr=log,
                cwd=self.folder,
            )
        if wait:
            wait_for("the node listens", lambda: self.alive() and listens(self.port), 60)
        return self

    def alive(self) -> bool:
        """Return whether the service runs; fail the test when it ended by itself."""
        assert self.process is not None
        code = self.process.poll()
        assert code is None, f"the node ended with {code}: {self.log.read_text()[-1500:]}"
        return True

    def stop(self, how: signal.Signals = signal.SIGTERM, seconds: float = 60) -> int:
        """End the service; return its exit code (0 when it was never started)."""
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.process.send_signal(how)
        return self.process.wait(seconds)

    def cli(self, command: str, *arguments: str) -> subprocess.CompletedProcess:
        """Run another `dicom-node` command on the same configuration."""
        return subprocess.run(
            [
                sys.executable, "-m", "dicom_node.cli", command,
                "--config", str(self.config), *arguments,
            ],
            env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip

    def jobs(self) -> list[dict]:
        """Return the rows of `dicom-node jobs --json`, straight from the store: it is polled."""
        store = open_store(load_settings(self.config, {}).database_url)
        try:
            return store.series.listing()
        finally:
            store.close()

    def job(self, series_uid: str) -> dict | None:
        """Return the row of one series."""
        return next((row for row in self.jobs() if row["series_uid"] == series_uid), None)

    def wait_state(self, series_uid: str, states: Sequence[str], seconds: float) -> dict:
        """Return the row once the series is in one of `states`."""

        def reached() -> dict | None:
            self.alive()
            row = self.job(series_uid)
            return row if row and row["state"] in states else None

        try:
            return wait_for(f"series reaches {states}", reached, seconds, pause=0.5)
        except AssertionError:
            raise AssertionError(
                f"series is {self.job(series_uid)}, not in {states}, after {seconds} s; "
                f"log: {self.log.read_text()[-2000:]}"
            ) from None

    def page(self, path: str) -> str:
        """Return what the web server answers to `path`."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.web}{path}", timeout=20) as reply:
            return reply.read().decode()

    def workers(self) -> list[int]:
        """Return the process numbers of the running workers."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        found = []
        for pid in children.read_text().split() if children.exists() else []:
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if b"work" in command.split(b"\0"):
                found.append(int(pid))
        return found


def storescu(port: int, paths: Sequence[Path], *options: str, seconds: float = 300) -> str:
    """Send files with dcmtk's storescu as the scanner does; return what it printed."""
    done = run_storescu(port, paths, *options, seconds=seconds)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def run_storescu(
    port: int, paths: Sequence[Path], *options: str, seconds: float = 300
) -> subprocess.CompletedProcess:
    """Send files with dcmtk's storescu; return the ended process, whatever came of it."""
    return subprocess.run(
        [
            find_program("storescu"), "-v", "-aet", "SCANNER", "-aec", "SRNODE", *options,
            "127.0.0.1", str(port), *map(str, paths),
        ],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=seconds, check=False,
    )  # fmt: skip


def send_folder(port: int, folder: Path, seconds: float = 600) -> str:
    """Send the files of a folder as they are encoded, with dcmsend; return what it printed."""
    done = subprocess.run(
        [
            find_program("dcmsend"), "-v", "-aet", "SCANNER", "-aec", "SRNODE", "+sd", "+r",
            "--timeout", "60", "--dimse-timeout", "120", "127.0.0.1", str(port), str(folder),
        ],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=seconds, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def send_as_is(port: int, paths: Sequence[Path]) -> list[str]:
    """Send files byte for byte, whatever is wrong with them; return status and comment of each."""
    told = []
    for path in paths:
        meta = pydicom.dcmread(path, stop_before_pixels=True).file_meta
        entity = AE(ae_title="SCANNER")
        entity.add_requested_context(meta.MediaStorageSOPClassUID, [meta.TransferSyntaxUID])
        association = entity.associate("127.0.0.1", port, ae_title="SRNODE")
        assert association.is_established
        status = association.send_c_store(path)
        association.release()
        told.append(f"{status.get('Status', 0):04X} {status.get('ErrorComment', '')}")
    return told

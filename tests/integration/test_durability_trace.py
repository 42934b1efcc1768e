"""Promise 1: "success" leaves the machine after everything that it promises is on the disk.

kill -9 cannot show this, because the page cache survives it. So a real receiving process runs under
strace, one instance is sent to it, and the order of its system calls is checked. Each safeguard is
then taken away, from the trace and from the running process, and the check must notice.
"""

import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from dicom_node.network import scu
from tests.rigs import destination, rig_settings, write_series

CALLS = "openat,write,writev,pwrite64,fsync,fdatasync,mkdir,sendto,sendmsg"
SYNCED_OPEN = "openat O_DSYNC"  # every write through it returns when the bytes are on the disk

RECEIVER = """
import os, stat, sys, threading
from pathlib import Path
sabotage, folder = sys.argv[1], Path(sys.argv[2])
fsync, writev = os.fsync, os.writev

if sabotage == "file is not synced":
    os.O_DSYNC = 0
if sabotage == "folders are not synced":
    os.fsync = lambda fd: None if stat.S_ISDIR(os.fstat(fd).st_mode) else fsync(fd)
if sabotage == "file is written through another descriptor":
    def careless_write(fd, parts):
        other = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY)
        try:
            return writev(other, parts)
        finally:
            os.close(other)
    os.writev = careless_write

from dataclasses import replace
from dicom_node.intake import Taken
from dicom_node.settings import Settings
from dicom_node.store import engines, open_store
from dicom_node.network import keeping, scp as scp_module
from dicom_node.pixel_files import PixelFiles

if sabotage == "database is not synced":
    prepare = engines.prepare_sqlite
    def careless(connection, record):
        prepare(connection, record)
        connection.execute("PRAGMA synchronous=OFF")
    engines.prepare_sqlite = careless
if sabotage == "answer comes first":
    take_in_meanwhile = keeping.take_in_meanwhile
    def early(incoming, *others, then):
        copied = replace(incoming, encoded=bytes(incoming.encoded))
        late = (copied, *others, lambda outcome: None)
        threading.Timer(1.0, take_in_meanwhile, late).start()
        then(Taken(sop_uid="", series_uid="", outcome="new"))
    keeping.take_in_meanwhile = lambda *given: early(*given[:-1], then=given[-1])

settings = Settings.model_validate_json(sys.stdin.readline())
store = open_store(settings.database_url)
scp = scp_module.NodeScp(settings, store, PixelFiles(folder / "in", 0))
scp.start()
print("port", scp.port, flush=True)
sys.stdin.readline()
scp.stop(5.0)
"""


@dataclass(frozen=True, kw_only=True)
class Call:
    """One completed system call: its name, the file it was about, its arguments as strace says."""

    name: str
    path: str
    text: str


def parse(trace: str) -> list[Call]:
    """Return the calls that succeeded, in the order in which they took effect.

    A durable step counts from when it has returned; what is sent counts from when it begins.
    """
    calls, begun = [], {}
    for line in trace.splitlines():
        pid, _, rest = line.partition(" ")
        rest = rest.strip()
        if "<unfinished ...>" in rest:
            rest = rest.replace("<unfinished ...>", "")
            begun[pid] = "" if is_send(rest) else rest
            if not is_send(rest):
                continue
        elif rest.startswith("<..."):
            rest = begun.pop(pid, "") + rest.partition("resumed>")[2]
        if re.search(r"= -1 E", rest) or "(" not in rest:
            continue
        name, _, text = rest.partition("(")
        if name == "openat" and "O_DSYNC" in text:
            name = SYNCED_OPEN
        path = quoted_in(text) if name.startswith("openat") else path_in(text)
        calls.append(Call(name=name, path=path, text=text))
    return calls


def is_send(text: str) -> bool:
    return text.startswith(("sendto(", "sendmsg("))


def path_in(text: str) -> str:
    """Return the path that a call is about: of its descriptor, else its last quoted one."""
    if found := re.match(r"\d+<([^>]*)>", text):
        return found[1]
    return quoted_in(text)


def quoted_in(text: str) -> str:
    """Return the last quoted path of a call."""
    quoted = re.findall(r'"([^"]*)"', text)
    return quoted[-1] if quoted else ""


def missing_safeguards(calls: list[Call], series: str) -> list[str]:
    """Return what is missing, or late, before the answer of the first C-STORE leaves."""
    answers = [at for at, call in enumerate(calls) if is_answer(call)]
    if not answers:
        return ["there is no answer"]
    before = calls[: answers[0]]
    folder = rf"/in/{re.escape(series)}"
    kept, wal = rf"{folder}/[0-9.]+\.dcm$", r"/node\.db-wal$"
    steps = [
        ("synced creation of the file", (SYNCED_OPEN,), r"\.dcm$"),
        ("write of the file", ("write", "writev"), kept),
        ("fsync of the folder", ("fsync",), rf"{folder}$"),
        ("write of the row", ("pwrite64", "write"), wal),
        ("sync of the row", ("fsync", "fdatasync"), wal),
    ]
    missing, at = [], 0
    for what, names, path in steps:
        found = first(before, at, names, path)
        if found is None:
            missing.append(what)
        else:
            at = found + 1
    if any(call.name == "openat" and re.search(r"\.dcm>\s*$", call.text) for call in before):
        missing.append("another opening of the file")
    if first(before, 0, ("fsync",), r"/in$") is None:
        missing.append("fsync of the folder above")
    late = [call for call in before[at:] if call.name == "pwrite64" and re.search(wal, call.path)]
    return missing + ["sync of the last row"] * bool(late and not missing)


def first(calls: list[Call], start: int, names: tuple[str, ...], path: str) -> int | None:
    for at in range(start, len(calls)):
        if calls[at].name in names and re.search(path, calls[at].path):
            # The last of several writes is the one that must be on the disk.
            more = first(calls, at + 1, names, path) if "write" in names else None
            return at if more is None else more
    return None


def is_answer(call: Call) -> bool:
    """Return whether the call sends a P-DATA-TF PDU: after one C-STORE that is its answer."""
    return call.name in ("sendto", "sendmsg") and r'"\4\0' in call.text


@dataclass(frozen=True, kw_only=True)
class Traced:
    """What strace saw of one received instance."""

    calls: list[Call]
    series: str
    status: int | str


def receive_one(folder: Path, sabotage: str = "none") -> Traced:
    """Return the trace of a process that received one instance."""
    folder.mkdir()
    log = folder / "trace"
    command = ["strace", "-f", "-yy", "-s", "8", "-o", str(log), "-e", f"trace={CALLS}"]
    command += [sys.executable, "-c", RECEIVER, sabotage, str(folder)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        process.stdin.write(rig_settings(folder).model_dump_json() + "\n")
        process.stdin.flush()
        lines = iter(process.stdout.readline, "")
        said = next((line for line in lines if line.startswith("port")), "")
        assert said, process.communicate()[1]  # it has ended
        [item] = write_series(folder / "a", 1)
        [outcome] = scu.send([item], destination(int(said.split()[1])), "MR1")
        if sabotage == "answer comes first":
            time.sleep(2.0)
        process.stdin.write("stop\n")
        process.stdin.flush()
        process.wait(60)
    finally:
        process.kill()
        process.wait(10)
    [kept] = (folder / "in").glob("*/*.dcm")
    return Traced(calls=parse(log.read_text()), series=kept.parent.name, status=outcome.fault)


@pytest.fixture(scope="module")
def traced(tmp_path_factory) -> Traced:
    """The trace of the node as it is."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    if subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True).returncode:
        pytest.skip("strace cannot trace a process here (ptrace is not permitted)")
    return receive_one(tmp_path_factory.mktemp("trace") / "node")


def test_success_is_sent_after_file_name_folder_and_row_are_durable(traced):
    assert traced.status == 0x0000
    assert missing_safeguards(traced.calls, traced.series) == []


@pytest.mark.parametrize(
    ("names", "path", "noticed"),
    [
        ((SYNCED_OPEN,), r"\.dcm$", "synced creation of the file"),
        (("write", "writev"), r"\.dcm$", "write of the file"),
        (("fsync",), r"/in/[0-9.]+$", "fsync of the folder"),
        (("fsync",), r"/in$", "fsync of the folder above"),
        (("pwrite64",), r"-wal$", "write of the row"),
        (("fsync", "fdatasync"), r"-wal$", "sync of the row"),
        (("sendto", "sendmsg"), "", "there is no answer"),
    ],
)
def test_check_notices_every_call_that_is_missing(traced, names, path, noticed):
    kept = [
        call for call in traced.calls if not (call.name in names and re.search(path, call.path))
    ]

    assert noticed in missing_safeguards(kept, traced.series)


@pytest.mark.parametrize("late", [r"\.dcm$", r"/in/[0-9.]+$", r"-wal$"])
def test_check_notices_every_sync_that_comes_after_the_answer(traced, late):
    syncs = [c for c in traced.calls if "sync" in c.name.lower() and re.search(late, c.path)]
    others = [c for c in traced.calls if c not in syncs]

    assert missing_safeguards(others + syncs, traced.series)


@pytest.mark.parametrize(
    ("sabotage", "noticed"),
    [
        ("file is not synced", "synced creation of the file"),
        ("folders are not synced", "fsync of the folder"),
        ("file is written through another descriptor", "another opening of the file"),
        ("database is not synced", "sync of the row"),
        ("answer comes first", "write of the file"),
    ],
)
def test_node_without_a_safeguard_is_found_out(traced, tmp_path, sabotage, noticed):
    careless = receive_one(tmp_path / "careless", sabotage)

    assert careless.status == 0x0000  # it looks as good as the honest one from outside
    assert noticed in missing_safeguards(careless.calls, careless.series)

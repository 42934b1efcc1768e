"""Where the time of one received image goes: running, waiting for what, and waiting to be woken.

python -m benchmarks.waits [--receiver orthanc] [--associations 4]

Series are sent as `benchmarks.receive` does it, while the kernel notes every system call, every
wake-up and every change of thread (tracefs: root only). Printed are milliseconds for one image,
summed over the threads: "running" on a processor, "waiting" in a call, "woken" and not yet running,
"preempted" by another thread. Two futexes that many threads wait at are the interpreter's lock.
"""

import argparse
import os
import re
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.instances import Scanner
from benchmarks.receive import send
from benchmarks.receivers import NodeReceiver, OrthancReceiver

TRACEFS = Path("/sys/kernel/tracing")
EVENTS = (
    "sched/sched_switch",
    "sched/sched_waking",
    "raw_syscalls/sys_enter",
    "raw_syscalls/sys_exit",
)
BUFFER_KB = 120_000  # for each processor
CALLS = {  # x86-64
    0: "read", 1: "write", 3: "close", 7: "poll", 17: "pread64", 18: "pwrite64", 20: "writev",
    44: "sendto", 45: "recvfrom", 72: "fcntl", 73: "flock", 74: "fsync", 75: "fdatasync",
    202: "futex", 232: "epoll_wait", 257: "openat",
}  # fmt: skip
LINE = re.compile(r"\s*(.+?)-(\d+)\s+\[(\d+)\]\s+\S+\s+([\d.]+): (\w+): (.*)")
SWITCH = re.compile(r"prev_pid=(\d+) .*prev_state=(\S+) ==> next_comm=(.*?) next_pid=(\d+)")
WAKING = re.compile(r"comm=(.*?) pid=(\d+)")
LEAST_MS = 0.01  # of what is worth a line


class Times:
    """Seconds by program and state, from the lines of a trace."""

    def __init__(self) -> None:
        self.seconds: Counter[tuple[str, str]] = Counter()
        self.often: Counter[tuple[str, str]] = Counter()
        self.idle_s = self.first_s = self.last_s = 0.0
        self._names: dict[int, str] = {}
        self._states: dict[int, tuple[str, float]] = {}
        self._calls: dict[int, str] = defaultdict(lambda: "its own code")
        self._idle_since: dict[str, float] = {}

    def read(self, lines: Iterable[str]) -> None:
        """Add what the lines say."""
        for line in lines:
            match = LINE.match(line)
            if match is None:
                continue
            program, thread, processor, second, event, what = match.groups()
            self.last_s = float(second)
            self.first_s = self.first_s or self.last_s
            if thread != "0":
                self._names[int(thread)] = program.strip()
            getattr(self, f"_{event}")(int(thread), processor, what)

    def _sys_enter(self, thread: int, _: str, what: str) -> None:
        number, arguments = what.removeprefix("NR ").split(" ", 1)
        name = CALLS.get(int(number), f"call {number}")
        if name == "futex":
            name += f" {arguments.strip('()').split(', ')[0][-5:]}"
        self._calls[thread] = name
        self._now(thread, "running")

    def _sys_exit(self, thread: int, _: str, __: str) -> None:
        self._calls.pop(thread, None)
        self._now(thread, "running")

    def _sched_switch(self, _: int, processor: str, what: str) -> None:
        match = SWITCH.search(what)
        assert match is not None, what
        before, state, name, after = int(match[1]), match[2], match[3], int(match[4])
        if before:
            self._now(before, "preempted" if state.startswith("R") else "waiting")
        elif processor in self._idle_since:
            self.idle_s += self.last_s - self._idle_since.pop(processor)
        if after:
            self._names.setdefault(after, name)
            self._now(after, "running")
        else:
            self._idle_since[processor] = self.last_s

    def _sched_waking(self, _: int, __: str, what: str) -> None:
        match = WAKING.search(what)
        assert match is not None, what
        thread = int(match[2])
        if self._states.get(thread, ("", 0.0))[0].startswith("waiting"):
            self._now(thread, "woken")

    def _now(self, thread: int, state: str) -> None:
        """Note that a thread is in another state from this moment on."""
        if thread in self._states:
            before, since = self._states[thread]
            key = self._names.get(thread, "?"), before
            self.seconds[key] += self.last_s - since
            self.often[key] += 1
        self._states[thread] = f"{state}: {self._calls[thread]}", self.last_s


@contextmanager
def traced(into: Path) -> Iterator[None]:
    """Keep what the kernel notes meanwhile in a file."""

    def tell(name: str, value: str) -> None:
        (TRACEFS / name).write_text(value)

    tell("tracing_on", "0")
    tell("buffer_size_kb", str(BUFFER_KB))
    tell("trace", "")
    try:
        for event in EVENTS:
            tell(f"events/{event}/enable", "1")
        tell("tracing_on", "1")
        yield
        tell("tracing_on", "0")
        into.write_bytes((TRACEFS / "trace").read_bytes())
    finally:
        tell("tracing_on", "0")
        for event in EVENTS:
            tell(f"events/{event}/enable", "0")
        tell("trace", "")
        tell("buffer_size_kb", "1408")


def main(argv: Sequence[str] | None = None) -> int:
    """Trace one trial of the command line and print where the time went."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--receiver", choices=["node", "orthanc"], default="node")
    parser.add_argument("--associations", type=int, default=4)
    parser.add_argument("--images", type=int, default=192, help="in the series of each association")
    parser.add_argument("--size", type=int, default=256)
    arguments = parser.parse_args(argv)
    if not os.access(TRACEFS / "trace", os.R_OK | os.W_OK):
        print(
            f"{TRACEFS} cannot be read: it takes root, and a kernel with tracing", file=sys.stderr
        )
        return 2
    with tempfile.TemporaryDirectory(prefix="waits-") as folder:
        kind = OrthancReceiver if arguments.receiver == "orthanc" else NodeReceiver
        receiver = kind(Path(folder) / "receiver")
        try:
            scanner = Scanner(arguments.size, arguments.images)
            loads = [[scanner.scan() for _ in range(arguments.associations)] for _ in range(2)]
            send(loads[0], Path(folder) / "sent", receiver)
            with traced(Path(folder) / "trace"):
                took_s = send(loads[1], Path(folder) / "sent", receiver)
        finally:
            receiver.stop()
        with (Path(folder) / "trace").open() as lines:
            sent = [line for line in lines if not line.startswith("#")]
    senders = [number for number, line in enumerate(sent) if "storescu-" in line[:24]]
    times = Times()
    times.read(sent[senders[0] : senders[-1] + 1])
    report(times, arguments.associations * arguments.images, took_s)
    return 0


def report(times: Times, images: int, took_s: float) -> None:
    """Print the table."""
    span_ms = 1e3 * (times.last_s - times.first_s) / images
    print(f"{images / took_s:.0f} images/s while traced; {span_ms:.2f} ms an image,")
    print(f"in which the processors together were idle for {1e3 * times.idle_s / images:.2f} ms\n")
    print("| program | state | ms an image | times |\n|---|---|---|---|")
    for (program, state), seconds in sorted(times.seconds.items(), key=lambda x: (x[0][0], -x[1])):
        ms = 1e3 * seconds / images
        if ms >= LEAST_MS and program in ("python", "Orthanc", "storescu"):
            often = times.often[program, state] / images
            print(f"| {program} | {state} | {ms:.2f} | {often:.1f} |")


if __name__ == "__main__":
    sys.exit(main())

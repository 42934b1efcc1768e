"""Hostile input on real sockets: mutated exchanges against a running node, and what it did.

python -m tests.faults.fuzz --exchanges 100000 --seed 1 [--json FILE] [--only NUMBER]

Layers: association negotiation, PDUs, DIMSE command sets, data sets, storage commitment, the page's
HTTP (`fuzz_acts`, `fuzz_data`). A few conversations are under way at any time; every one follows
from the seed and its number, and what fails is written to a file and can be had again with --only.
Meanwhile a well-behaved scanner must always get its C-ECHO and C-STORE through. Watched from
outside: is the process alive, how much memory it takes, which files there are, what is in the log.
"""

import argparse
import itertools
import json
import random
import sys
import tempfile
import threading
import time
from pathlib import Path

from dicom_node.pixel_files import LOCK_STRIPES, MOST_OPEN_FOLDERS
from tests.faults import fuzz_wire as wire
from tests.faults.fuzz_data import Maker, Subject
from tests.faults.fuzz_line import (
    LIMIT_S,
    SENTINEL,
    Line,
    answered,
    end_of,
    opened,
    parted,
    statuses_in,
)
from tests.faults.fuzz_report import MOST_MB, Failure, Tally, keep, report
from tests.faults.fuzz_script import Conversation, Exchange, Script
from tests.faults.fuzz_target import Target

IN_FLIGHT = 12
PROBE_EVERY = 500  # exchanges
PROBE_LIMIT_S = 10.0
POOLED = 12  # threads of the page, files of the database, that were not needed before
WARM_UP = 500  # exchanges
SETTLED_S = 6.0  # longer than the limits that the node has here
HANDLER_RAISED = (0xC211, 0x0110)  # what pynetdicom answers for a handler that raised


class Attacker:
    """Holds conversations with a node; many threads use one."""

    def __init__(self, target: Target, tally: Tally) -> None:
        self._target = target
        self._tally = tally
        self._lock = threading.Lock()
        self.under_way: dict[int, int] = {}  # thread to number of conversation

    def hold(self, conversation: Conversation) -> None:
        """Hold a conversation to its end; an opening is repeated when the node has cut us off."""
        self.under_way[threading.get_ident()] = conversation.number
        line: Line | None = None
        for exchange in conversation.exchanges:
            started = time.monotonic()
            if conversation.opening is None:
                ending, statuses = self._alone(conversation, exchange)
            else:
                line, ending, statuses = self._inside(line, conversation.opening, exchange)
            self._note(conversation, exchange, ending, statuses, time.monotonic() - started)
        if line is not None:
            line.close()
        del self.under_way[threading.get_ident()]
        with self._lock:
            self._tally.conversations += 1

    def fail(self, kind: str, detail: str, conversation: int | None = None) -> None:
        """Note a promise that did not hold, and print it at once."""
        failure = Failure(kind=kind, detail=detail, conversation=conversation)
        with self._lock:
            self._tally.failures.append(failure)
        print(f"FAILED {failure}", file=sys.stderr, flush=True)

    def _note(
        self,
        conversation: Conversation,
        exchange: Exchange,
        ending: str,
        statuses: list[int],
        took_s: float,
    ) -> None:
        with self._lock:
            self._tally.exchanges[conversation.layer] += 1
            self._tally.endings[f"{conversation.layer}: {ending}"] += 1
            self._tally.statuses.update(f"{status:04X}" for status in statuses)
            self._tally.slowest_exchange_s = max(self._tally.slowest_exchange_s, round(took_s, 2))
        if ending in ("hangs", "nobody listens", "500"):
            self.fail(ending, exchange.what, conversation.number)
        if set(statuses) & set(HANDLER_RAISED):
            self.fail("handler raised", exchange.what, conversation.number)

    def _alone(self, conversation: Conversation, exchange: Exchange) -> tuple[str, list[int]]:
        """Say one thing on a connection of its own, and see it closed."""
        page = conversation.layer == "http"
        try:
            line = Line(self._target.web if page else self._target.port)
        except OSError:
            return "nobody listens", []
        try:
            line.send(exchange.data)
            return (answered(line) if page else parted(line)), []
        except TimeoutError:
            return "hangs", []
        except OSError:
            return "closed", []
        finally:
            line.close()

    def _inside(
        self, line: Line | None, opening: bytes, exchange: Exchange
    ) -> tuple[Line | None, str, list[int]]:
        """Say one thing on an association; return it too, if it goes on."""
        statuses: list[int] = []
        try:
            line = line or opened(self._target.port, opening)
            line.send(exchange.data + (wire.echo(SENTINEL) if exchange.ending == "echo" else b""))
            if exchange.ending == "shut":
                line.shut()
            ending = end_of(line, exchange.ending, statuses)
        except TimeoutError:
            ending = "hangs"
        except ConnectionRefusedError:
            return None, "nobody listens", []
        except OSError:
            ending = "closed"
        if ending == "answered":
            return line, ending, statuses
        if line is not None:
            line.close()
        return None, ending, statuses


class Probe:
    """A scanner that does everything right, on associations of its own."""

    def __init__(self, target: Target, maker: Maker, attacker: Attacker, tally: Tally) -> None:
        self._target, self._maker, self._attacker, self._tally = target, maker, attacker, tally
        self._number = itertools.count()
        self._opening = wire.good_request((1, 3)).replace(b"MR1 ".ljust(16), b"PROBE".ljust(16))

    def send(self) -> None:
        """Have one C-ECHO and one C-STORE answered with success."""
        started = time.monotonic()
        try:
            statuses = self._statuses(
                self._maker.good(random.Random(f"probe {next(self._number)}"))
            )
        except OSError as error:
            statuses = [repr(error)]
        took_s = time.monotonic() - started
        self._tally.probes += 1
        self._tally.slowest_probe_s = max(self._tally.slowest_probe_s, round(took_s, 2))
        if statuses != [0, 0] or took_s > PROBE_LIMIT_S:
            self._attacker.fail("probe", f"{statuses} after {took_s:.1f} s")

    def _statuses(self, subject: Subject) -> list[object]:
        line = opened(self._target.port, self._opening)
        elements = wire.store_elements(subject.sop_class, subject.sop_uid)
        line.send(wire.echo(1) + wire.message(3, wire.command(elements), subject.encoded))
        until, found = time.monotonic() + LIMIT_S, []
        while len(found) < 2 and (pdu := line.pdu(until)):
            found.extend(statuses_in(pdu))
        line.send(wire.RELEASE_RQ)
        line.pdu(until)
        line.close()
        return found


class Campaign:
    """Some threads that hold conversations until there have been enough exchanges."""

    def __init__(self, target: Target, script: Script, tally: Tally) -> None:
        self._script, self._tally, self._exchanges = script, tally, 0
        self._numbers = itertools.count()
        self._target = target
        self.attacker = Attacker(target, tally)
        self.probe = Probe(target, script.maker, self.attacker, tally)
        self._over = threading.Event()

    def run(self, exchanges: int, until: float) -> None:
        """Go on until there have been so many exchanges, or the time is over."""
        self._exchanges = exchanges
        threads = [threading.Thread(target=self._talk, args=(until,)) for _ in range(IN_FLIGHT)]
        for thread in threads:
            thread.start()
        probed = 0
        while any(thread.is_alive() for thread in threads):
            time.sleep(0.1)
            self._watch()
            if self._tally.total - probed >= PROBE_EVERY and not self._over.is_set():
                probed = self._tally.total
                self.probe.send()
        self._watch()

    def _talk(self, until: float) -> None:
        while not self._over.is_set() and self._tally.total < self._exchanges:
            if time.monotonic() > until:
                return
            self.attacker.hold(self._script.conversation(next(self._numbers)))

    def _watch(self) -> None:
        """Look at the process from outside."""
        if self._target.exit_code is not None:
            if not self._over.is_set():
                about = f"exit code {self._target.exit_code}; under way {self._under_way()}"
                self.attacker.fail("process died", about)
            self._over.set()
            return
        self._tally.rss_peak_mb = self._target.peak_mb()
        if (
            self._tally.rss_peak_mb > self._tally.rss_before_mb + MOST_MB
            and not self._over.is_set()
        ):
            about = f"{self._tally.rss_peak_mb} MB; under way {self._under_way()}"
            self.attacker.fail("memory", about)
            self._over.set()
        for line in self._target.complaints():
            self.attacker.fail("log", f"{line[:3000]}; under way {self._under_way()}")

    def _under_way(self) -> list[int]:
        return sorted(self.attacker.under_way.values())


def run(
    folder: Path, exchanges: int, seed: int, *, minutes: float = 60.0, script: Script | None = None
) -> Tally:
    """Run a campaign; return its tally."""
    tally = Tally(seed=seed)
    script = script or Script(seed)
    with Target(folder / "node") as target:
        campaign = Campaign(target, script, tally)
        started = time.monotonic()
        threads, files = warm_up(target, campaign, tally, exchanges // 5)
        campaign.run(exchanges, started + 60 * minutes)
        tally.seconds = round(time.monotonic() - started, 1)
        if target.exit_code is None:
            after(target, campaign, tally, threads, files)
    wrong = target.verify()
    if wrong:
        campaign.attacker.fail("verify", wrong)
    return tally


def warm_up(target: Target, campaign: Campaign, tally: Tally, exchanges: int) -> tuple[int, int]:
    """Let the node grow to its size, and return its threads and descriptors.

    What it takes at its first work (pools of the database and of the page) is no leak.
    """
    for _ in range(5):
        campaign.probe.send()
    tally.rss_before_mb = target.rss_mb()
    for _ in range(3):
        visit_page(target)
    campaign.run(min(exchanges, WARM_UP), time.monotonic() + 60)
    target.settle(0, 0, seconds=min(SETTLED_S, exchanges / 20))
    return target.status("Threads"), target.open_files()


def visit_page(target: Target) -> None:
    """Ask for the page over as many connections as a campaign ever has."""
    lines = [Line(target.web) for _ in range(IN_FLIGHT)]
    for line in lines:
        line.send(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
    for line in lines:
        while line.more(time.monotonic() + LIMIT_S):
            pass
        line.close()


def after(target: Target, campaign: Campaign, tally: Tally, threads: int, files: int) -> None:
    """Look at what is left when everybody has gone."""
    target.settle(threads, files)
    campaign.probe.send()
    target.settle(threads, files)
    tally.threads = (threads, target.status("Threads"))
    tally.files = (files, target.open_files())
    tally.rss_after_mb = target.rss_mb()
    if tally.threads[1] > threads + POOLED or tally.files[1] > files + POOLED:
        campaign.attacker.fail("left behind", f"threads {tally.threads}, files {tally.files}")
    if target.open_folders() > MOST_OPEN_FOLDERS:
        campaign.attacker.fail("left behind", f"{target.open_folders()} folders")
    if target.open_locks() > LOCK_STRIPES + 1:  # and the one for folders
        campaign.attacker.fail("left behind", f"{target.open_locks()} lock files")
    for stray in target.strays():
        campaign.attacker.fail("stray file", stray)


def main() -> int:
    """Run the campaign of the command line; 0 when every promise held."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--exchanges", type=int, default=100000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=60.0, help="at most")
    parser.add_argument("--only", type=int, help="hold this conversation alone, and print it")
    parser.add_argument("--json", type=Path, help="write a summary for docs/reliability.md")
    parser.add_argument(
        "--failures", type=Path, default=Path(tempfile.gettempdir()) / "fuzz-failures"
    )
    arguments = parser.parse_args()
    script = Script(arguments.seed)
    if arguments.only is not None:
        alone = script.conversation(arguments.only)
        script.conversation = lambda at: alone  # type: ignore[method-assign]
        arguments.exchanges = len(alone.exchanges)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        tally = run(
            Path(folder),
            arguments.exchanges,
            arguments.seed,
            minutes=arguments.minutes,
            script=script,
        )
    command = (
        f"python -m tests.faults.fuzz --exchanges {arguments.exchanges} --seed {arguments.seed}"
    )
    told = report(tally, command)
    print(json.dumps(told, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(told, indent=1))
    if tally.failures:
        keep(tally, Script(arguments.seed), arguments.failures)
    return 1 if tally.failures else 0


if __name__ == "__main__":
    sys.exit(main())

"""What a fuzzing campaign saw, and how it is told: on the screen and for docs/reliability.md."""

import json
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.faults.fuzz_script import Script
from tests.faults.fuzz_target import ROOT

MOST_MB = 256.0  # above what the node has before it is attacked


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A promise that did not hold."""

    kind: str
    detail: str
    conversation: int | None = None


@dataclass(kw_only=True)
class Tally:
    """What happened in a campaign."""

    seed: int
    exchanges: Counter[str] = field(default_factory=Counter)  # by layer
    endings: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)
    conversations: int = 0
    seconds: float = 0.0
    probes: int = 0
    slowest_probe_s: float = 0.0
    slowest_exchange_s: float = 0.0
    rss_before_mb: float = 0.0
    rss_peak_mb: float = 0.0
    rss_after_mb: float = 0.0
    threads: tuple[int, int] = (0, 0)  # before, after
    files: tuple[int, int] = (0, 0)

    @property
    def total(self) -> int:
        """Return the number of exchanges."""
        return self.exchanges.total()

    def failed(self, *kinds: str) -> int:
        """Return how many failures are of these kinds."""
        return sum(failure.kind in kinds for failure in self.failures)


def keep(tally: Tally, script: Script, folder: Path) -> None:
    """Write what failed, with the bytes that were said, to a file."""
    folder.mkdir(parents=True, exist_ok=True)
    for failure in tally.failures:
        said = {}
        if failure.conversation is not None:
            found = script.conversation(failure.conversation)
            said = {
                "layer": found.layer,
                "opening": (found.opening or b"").hex(),
                "exchanges": [
                    {"what": each.what, "ending": each.ending, "data": each.data.hex()}
                    for each in found.exchanges
                ],
            }
        path = (
            folder
            / f"fuzz-{tally.seed}-{failure.conversation}-{failure.kind.replace(' ', '-')}.json"
        )
        path.write_text(json.dumps({"seed": tally.seed, **asdict(failure), **said}, indent=1))
        print(f"written: {path}", file=sys.stderr)


PROMISES = (
    ("mutated exchanges, crashes of the listener", ("process died", "nobody listens")),
    ("exchanges without an end within the limit", ("hangs",)),
    (
        "handlers that raised, threads that died, other alarms in the log",
        ("handler raised", "log", "500"),
    ),
    ("files outside the state directory or of odd names", ("stray file",)),
    ("memory over the bound", ("memory",)),
    ("threads or descriptors left behind", ("left behind",)),
    ("valid C-ECHO + C-STORE during it that failed", ("probe",)),
    ("ledger, hashes and audit chain afterwards (dicom-node verify)", ("verify",)),
)


def rows(tally: Tally) -> list[dict[str, object]]:
    """Return the lines of the report."""
    made = []
    for what, kinds in PROMISES:
        count = tally.probes if kinds == ("probe",) else 1 if kinds == ("verify",) else tally.total
        made.append({"what": what, "count": count, "violations": tally.failed(*kinds)})
    made[4] |= {
        "bound_mb": MOST_MB,
        "before_mb": tally.rss_before_mb,
        "peak_mb": tally.rss_peak_mb,
        "after_mb": tally.rss_after_mb,
    }
    made[6] |= {"slowest_s": tally.slowest_probe_s}
    return made


def report(tally: Tally, command: str) -> dict[str, object]:
    """Return the campaign as the reliability report reads it."""
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "campaign": "fuzz: hostile input", "command": command, "commit": found.stdout.strip(),
        "rows": rows(tally), "details": vars(tally) | {"failures": [*map(asdict, tally.failures)]},
    }  # fmt: skip

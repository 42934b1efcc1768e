"""One row of the campaign: what was done, how often, and what was found; as JSON."""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.faults.accounts import Account

ROOT = Path(__file__).resolve().parents[2]


@dataclass(kw_only=True)
class Row:
    """The result of one fault family."""

    name: str  # of the module
    unit: str  # what is counted: "kills"
    count: int = 0
    account: Account = field(default_factory=Account)
    details: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    command: str = ""
    commit: str = ""
    date: str = ""

    @property
    def violations(self) -> int:
        """How many promises were broken."""
        return len(self.account.problems)

    def document(self) -> dict[str, Any]:
        """Return the row as JSON."""
        return asdict(self) | {"violations": self.violations}


def together(old: Any, new: Any) -> Any:
    """Return two results of one family as one: numbers add up, texts stand side by side."""
    if isinstance(old, dict) and isinstance(new, dict):
        names = [*old, *(name for name in new if name not in old)]
        return {
            name: together(old[name], new[name])
            if name in old and name in new
            else old.get(name, new.get(name))
            for name in names
        }
    if isinstance(old, str):
        return old if new in old.split("; ") else f"{old}; {new}"
    if isinstance(old, list):
        return [*old, *(one for one in new if one not in old)]
    return old + new


def commit() -> str:
    """Return the commit that is checked out, marked when the tree is not clean."""
    said = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=10"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return said.stdout.strip() or "unknown"


def main(
    name: str,
    text: str | None,
    run: Callable[[Path, argparse.Namespace], Row],
    **options: int | Path | None,
) -> int:
    """Run one family from the command line; 0 when every promise held.

    Parameters
    ----------
    options
        And their defaults: how much is done, or with which files.
    """
    parser = argparse.ArgumentParser(prog=f"python -m tests.faults.{name}", description=text)
    for option, default in options.items():
        kind = int if isinstance(default, int) else Path
        parser.add_argument(f"--{option}", type=kind, default=default, help=f"[{default}]")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the result there, too")
    arguments = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f"{name}-") as folder:
        row = run(Path(folder), arguments)
    row.seconds = round(time.monotonic() - started, 1)
    row.command = " ".join([parser.prog, *chosen(arguments, options), f"--seed {arguments.seed}"])
    row.commit, row.date = commit(), datetime.now(UTC).date().isoformat()
    document = json.dumps(row.document(), indent=1)
    print(document)
    if arguments.json:
        arguments.json.write_text(document + "\n")
    return 1 if row.violations else 0


def chosen(arguments: argparse.Namespace, options: Iterable[str]) -> list[str]:
    """Return the options as they would be typed; of a path only its name."""
    values = {option: getattr(arguments, option) for option in options}
    return [
        f"--{option} {value.name if isinstance(value, Path) else value}"
        for option, value in values.items()
        if value is not None
    ]


def say(text: str) -> None:
    """Tell whoever waits for the campaign how far it is."""
    print(text, file=sys.stderr, flush=True)

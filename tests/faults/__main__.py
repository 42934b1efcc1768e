"""The whole campaign, one fault family after the other, and docs/reliability.md from it.

python -m tests.faults [--scale 0.05] [--only kill9 clock] [--add --seed 2]

A family that is left out keeps its last result on the page. With --add the new results are added
to the last ones: a long campaign in several sittings.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests.faults.families import FAMILIES, Family
from tests.faults.ledger import ROOT, say, together
from tests.faults.report import LEDGER, PAGE, normal, render


def main() -> int:
    """Run what the command line asks for; 0 when every promise held."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="of the full counts [1]")
    names = [family.name for family in FAMILIES]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--seed", type=int, default=1, help="another one for another sitting [1]")
    parser.add_argument("--add", action="store_true", help="to what the ledger has")
    arguments = parser.parse_args()
    ledger = json.loads(LEDGER.read_text()) if LEDGER.is_file() else {}
    violations = 0
    for family in FAMILIES:
        if family.name not in arguments.only or find_spec(f"tests.faults.{family.name}") is None:
            continue
        document = run(family, max(1, round(family.full * arguments.scale)), arguments.seed)
        violations += normal(document)["violations"]
        if arguments.add and family.name in ledger:
            document = together(ledger[family.name], document)
        ledger[family.name] = document
        LEDGER.write_text(json.dumps(ledger, indent=1) + "\n")
        PAGE.write_text(render(ledger))
    say(f"{violations} violations; see {PAGE.relative_to(ROOT)}")
    return 1 if violations else 0


def run(family: Family, count: int, seed: int) -> dict[str, Any]:
    """Return the document of one family, run in a process of its own."""
    say(f"== {family.title}")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "row.json"
        command = [sys.executable, "-m", f"tests.faults.{family.name}"]
        command += [f"--{family.option}", str(count), "--seed", str(seed), "--json", str(file)]
        subprocess.run(command, cwd=ROOT, check=False, stdout=subprocess.DEVNULL)
        if not file.is_file():
            raise SystemExit(f"{family.name} ended without a result")
        return json.loads(file.read_text())


if __name__ == "__main__":
    sys.exit(main())

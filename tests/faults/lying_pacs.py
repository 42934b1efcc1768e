"""An archive that answers success and stores nothing: its storage commitment tells the truth.

python -m tests.faults.lying_pacs --series 30

The archive is ours (pynetdicom). It says Success for some or all instances of a series and keeps
none of them, once, twice, or until somebody mends it. The node must notice by storage commitment,
send again exactly what is missing, and give up in words when it never helps; `requeue` then sends
what is missing.
"""

import argparse
import sys
from pathlib import Path

from tests.faults.ledger import Row, main
from tests.faults.misbehaviour import Misbehaviour
from tests.faults.peer import LIE, Script

SCRIPTS = (
    Script(name="one instance, once", acts={3: (LIE,)}),
    Script(name="every third instance, once", acts={n: (LIE,) for n in range(0, 60, 3)}),
    Script(name="all instances, once", others=(LIE,)),
    Script(name="all twice", others=(LIE, LIE)),
    Script(name="one instance for ever", acts={5: (LIE,)}, for_ever=True),
)


def run(folder: Path, arguments: argparse.Namespace) -> Row:
    """Run what the command line asks for."""
    with Misbehaviour(folder, SCRIPTS, arguments.seed, commitment=True) as trial:
        return trial.row("lying_pacs", arguments.series, hopeless="has not committed")


if __name__ == "__main__":
    sys.exit(main("lying_pacs", __doc__, run, series=30))

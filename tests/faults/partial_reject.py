"""An archive that takes some instances of a series and refuses others, or breaks off.

python -m tests.faults.partial_reject --series 36

The archive is ours (pynetdicom). Each instance has its own answer: warnings (taken), transient and
lasting refusals, an abort, no answer in time. What may pass is sent again, and only that; what is
lasting ends the job with the reason, and `requeue` sends what is missing once the archive is
mended. No instance may be taken twice.
"""

import argparse
import sys
from pathlib import Path

from tests.faults.ledger import Row, main
from tests.faults.misbehaviour import Misbehaviour
from tests.faults.peer import ABORT, HANG, Script

SCRIPTS = (
    Script(name="out of resources for a while", acts={n: (0xA700, 0xA702) for n in (1, 4, 7)}),
    Script(name="processing failure once", acts={n: (0x0110,) for n in (0, 5, 11)}),
    Script(name="warnings", acts={0: (0xB000,), 2: (0xB006,), 4: (0xB007,)}),
    Script(name="one refused for good", acts={6: (0xC000,)}, for_ever=True),
    Script(name="wrong class for good", acts={2: (0xA900,), 3: (0xA900,)}, for_ever=True),
    Script(name="aborts half-way", acts={5: (ABORT,), 8: (ABORT, ABORT)}),
    Script(name="hangs", acts={4: (HANG,)}),
    Script(name="all refused once", others=(0xA700,)),
    Script(name="everything at once", acts={1: (0xA700, ABORT), 3: (HANG, 0x0110), 6: (0xB000,)}),
)


def run(folder: Path, arguments: argparse.Namespace) -> Row:
    """Run what the command line asks for."""
    with Misbehaviour(folder, SCRIPTS, arguments.seed, commitment=False) as trial:
        return trial.row("partial_reject", arguments.series, hopeless="for good")


if __name__ == "__main__":
    sys.exit(main("partial_reject", __doc__, run, series=36))

"""`python -m sr_engine.cli`, where no script is installed."""

import sys

from sr_engine.cli import main

sys.exit(main())

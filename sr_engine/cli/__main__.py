"""`python -m sr_engine.cli`, where no script is installed."""

import sys

from sr_engine.cli import main

if __name__ == "__main__":  # processes that simulate scenes import this file
    sys.exit(main())

"""``python -m dicom_node.cli``: how the service starts its workers."""

import sys

from dicom_node.cli import main

if __name__ == "__main__":
    sys.exit(main())

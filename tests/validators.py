"""What dciodvfy and dcentvfy say, in a form that can be compared with what they say of a source."""

import re
import subprocess
from pathlib import Path

# The packaged dciodvfy of 2022 does not know SyntheticData (0008,001C).
ALLOWED = re.compile(r"not a recognized standard attribute - \(0x0008,0x001c\)")


def errors(tool: str, *paths: Path) -> set[str]:
    """Return the distinct errors of a validator, the place of a damaged UID left out."""
    command = [tool, *map(str, paths)]
    output = subprocess.run(command, capture_output=True, text=True, errors="replace").stderr
    lines = {line for line in output.splitlines() if line.startswith("Error")}
    return {re.sub(r' - ".*', "", line) for line in lines if not ALLOWED.search(line)}

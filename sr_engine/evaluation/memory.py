"""Peak memory of one stretch of work, where the system can tell; else of the whole process."""

import resource
from pathlib import Path

PROC = Path("/proc/self")


def reset_peak() -> None:
    """Make the peak start again from what is in memory now (Linux; elsewhere nothing happens)."""
    try:
        (PROC / "clear_refs").write_text("5")
    except OSError:
        return


def peak_mib() -> float:
    """Return the highest resident memory since the last reset."""
    try:
        lines = (PROC / "status").read_text().splitlines()
        kib = next(float(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(kib / 1024, 1)

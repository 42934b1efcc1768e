"""The edge at which a failure that nobody foresaw ends, so that it holds up nothing else.

Besides the worker's edge, which sorts failures by what becomes of a job, this is the only place
that catches everything. Whoever calls it logs the failure and changes a state.
"""

from collections.abc import Callable


def failure_of(action: Callable[[], object]) -> Exception | None:
    """Return what `action` raised, None if it came to its end."""
    try:
        action()
    except Exception as error:  # the edge
        return error
    return None

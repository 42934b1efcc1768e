"""The heaps of the C library: few of them, and given back what is free.

Python holds a constant amount while images come and go, but the C library kept what the largest
ones once needed, and pieces between others: the service grew for hours without holding anything.
Where there is no glibc nothing is done.
"""

import ctypes
from contextlib import suppress

M_ARENA_MAX, ARENAS = -8, 2  # mallopt(3)


def share() -> None:
    """Let all threads share a few heaps; call it before there are threads.

    Each thread has one of its own otherwise.
    """
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, ARENAS)


def give_back() -> None:
    """Give every whole page that is free back to the system (malloc_trim(3))."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)

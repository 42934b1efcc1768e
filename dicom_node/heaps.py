"""The heaps of the C library, few and given back where free; what Python need not search.

Python holds a constant amount while images come and go, but the C library kept what the largest
ones once needed, and pieces between others: the service grew for hours without holding anything.
Where there is no glibc the heaps are left as they are.
"""

import ctypes
import gc
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


def set_apart() -> None:
    """Leave what is there out of every later search for unreachable cycles (`gc.freeze`).

    Call it when everything is loaded: every search went through it and stopped all threads for
    60 ms, modules and tables being 140,000 objects.
    """
    gc.collect()
    gc.freeze()

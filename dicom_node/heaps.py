"""The heaps of the C library, few and given back where free; what Python need not search.

Python holds a constant amount while images come and go, but the C library kept what the largest
ones once needed, and pieces between others: the service grew for hours without holding anything.
Where there is no glibc the heaps are left as they are.
"""

import ctypes
import gc
from contextlib import suppress

ARENAS = 2
LARGE_BYTES = 2**20  # lies apart, outside of the heaps, and goes back to the system when freed
TOP_BYTES = 2**21  # free at a heap's end, before it is cut there and then
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # mallopt(3)


def share() -> None:
    """Let all threads share a few heaps of small things; call it before there are threads.

    Each thread has one of its own otherwise, and after the first large block that was freed the C
    library puts blocks of its size into the heaps, where they leave holes.
    """
    with suppress(AttributeError, OSError):
        library = ctypes.CDLL(None)
        library.mallopt(M_ARENA_MAX, ARENAS)
        library.mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)
        library.mallopt(M_TRIM_THRESHOLD, TOP_BYTES)


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

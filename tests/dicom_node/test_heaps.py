"""The service's memory does not grow with what has passed through it."""

import os
import subprocess
import sys

import pytest

glibc = pytest.mark.skipif(
    "CS_GNU_LIBC_VERSION" not in os.confstr_names or os.confstr("CS_GNU_LIBC_VERSION") is None,
    reason="this is not glibc",
)


def printed_by(code: str, *arguments: str) -> str:
    """Return what a process of its own prints."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


HEAPS = """
import ctypes, os, sys, threading
from dicom_node import heaps
if sys.argv[1] == "shared":
    heaps.share()
ready, done = threading.Barrier(9), threading.Event()
def hold():
    images = [bytes(60_000) for _ in range(50)]
    ready.wait(60)
    done.wait(60)
    del images
threads = [threading.Thread(target=hold) for _ in range(8)]
[thread.start() for thread in threads]
ready.wait(60)
libc = ctypes.CDLL(None)
libc.fdopen.restype = ctypes.c_void_p
libc.malloc_info(0, ctypes.c_void_p(libc.fdopen(1, b"w")))
libc.fflush(None)
done.set()
"""


@glibc
def test_the_service_shares_a_few_heaps_among_its_threads():
    heaps = {}
    for how in ("alone", "shared"):
        heaps[how] = printed_by(HEAPS, how).count("<heap nr=")

    assert heaps["shared"] == 2 < heaps["alone"]


LARGE = """
import ctypes, sys
from dicom_node import heaps
if sys.argv[1] == "shared":
    heaps.share()
del (first := [bytes(8 << 20)])[0]
large = bytes(4 << 20)
names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
Figures = type("Figures", (ctypes.Structure,), {"_fields_": [(n, ctypes.c_size_t) for n in names]})
mallinfo = ctypes.CDLL(None).mallinfo2
mallinfo.restype = Figures
print(mallinfo().hblkhd >= len(large))
"""


@glibc
def test_large_blocks_leave_no_holes_in_the_heaps():
    """Once one was freed, the C library would put the next ones into a heap."""
    apart = {how: printed_by(LARGE, how).strip() for how in ("alone", "shared")}

    assert apart == {"alone": "False", "shared": "True"}


HOLES = """
import gc
from dicom_node import heaps
def resident_kib():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
blocks = [bytes(20_000) for _ in range(4_000)]
kept = blocks[::20]
del blocks
gc.collect()
before = resident_kib()
heaps.give_back()
print(before - resident_kib())
"""


@glibc
def test_what_is_free_between_what_is_held_goes_back_to_the_system():
    assert int(printed_by(HOLES)) > 40_000  # of 80 MB, a twentieth of which is held


APART = """
import gc, sys, weakref
from dicom_node import heaps
import dicom_node.service
class Ring: pass
if sys.argv[1] == "apart":
    heaps.set_apart()
ring = Ring()
ring.self = ring
gone = weakref.ref(ring)
del ring
print(len(gc.get_objects()), gc.collect() > 0, gone() is None)
"""


def test_what_was_loaded_is_searched_no_more_and_what_came_later_is_freed():
    searched = {}
    for how in ("as usual", "apart"):
        count, *freed = printed_by(APART, how).split()
        assert freed == ["True", "True"]
        searched[how] = int(count)

    assert searched["apart"] < searched["as usual"] / 100

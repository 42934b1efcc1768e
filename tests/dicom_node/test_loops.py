"""A loop goes on whatever becomes of a step, and says how the last one ended."""

import threading

import pytest

from dicom_node.errors import StoreUnavailable
from dicom_node.loops import Loop


@pytest.mark.parametrize("error", [StoreUnavailable("away"), ValueError("nobody foresaw it")])
def test_a_step_that_fails_is_told_of_and_the_next_one_comes(error):
    begun, ended, fails = threading.Semaphore(0), threading.Semaphore(0), [True]

    def step():
        begun.release()
        ended.acquire()
        if fails[0]:
            raise error

    loop = Loop("rig", step, 0.01)
    assert not loop.failing
    loop.start()
    begun.acquire()
    ended.release()
    begun.acquire()  # the next step: the first one has ended
    assert loop.failing
    fails[0] = False
    ended.release()
    begun.acquire()
    assert not loop.failing
    ended.release(100)
    loop.stop(20)
    assert not loop.failing


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_is_gone_is_told_of():
    gone = threading.Event()

    def step():
        gone.set()
        raise SystemExit

    loop = Loop("rig", step, 0.01)
    loop.start()
    assert gone.wait(20)
    loop._thread.join(20)

    assert loop.failing


def test_a_loop_that_is_woken_does_not_wait_for_its_time():
    steps = threading.Semaphore(0)
    loop = Loop("rig", steps.release, 3600, grace_s=0.01)
    loop.start()
    assert not steps.acquire(timeout=0.1)

    loop.wake()

    assert steps.acquire(timeout=20) and not loop.ending
    loop.stop(20)
    assert loop.ending and not loop.failing

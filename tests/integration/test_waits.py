"""`benchmarks.waits` adds up what a trace of the kernel says."""

import pytest

from benchmarks.waits import Times

TRACE = """
          python-7   [001] ..... 10.000000: sys_enter: NR 202 (7f678c34e6f0, 89, 0, 0, 0, 0)
          python-7   [001] d..2. 10.001000: sched_switch: prev_comm=python prev_pid=7 \
prev_state=S ==> next_comm=swapper/1 next_pid=0 next_prio=120
        storescu-8   [000] d.s4. 10.003000: sched_waking: comm=python pid=7 prio=120 target_cpu=001
          <idle>-0   [001] d..2. 10.003500: sched_switch: prev_comm=swapper/1 prev_pid=0 \
prev_state=R ==> next_comm=python next_pid=7 next_prio=120
          python-7   [001] ..... 10.003600: sys_exit: NR 202 = 0
          python-7   [001] d..2. 10.004600: sched_switch: prev_comm=python prev_pid=7 \
prev_state=R+ ==> next_comm=storescu next_pid=8 next_prio=120
        storescu-8   [001] d..2. 10.006600: sched_switch: prev_comm=storescu prev_pid=8 \
prev_state=S ==> next_comm=python next_pid=7 next_prio=120
a line that says nothing
"""


def test_a_thread_runs_waits_is_woken_and_is_preempted():
    times = Times()
    times.read(TRACE.splitlines())
    ms = {key: pytest.approx(1e3 * seconds) for key, seconds in times.seconds.items()}

    assert ms == {
        ("python", "running: futex 4e6f0"): 1.1,
        ("python", "waiting: futex 4e6f0"): 2.0,
        ("python", "woken: futex 4e6f0"): 0.5,
        ("python", "running: its own code"): 1.0,
        ("python", "preempted: its own code"): 2.0,
        ("storescu", "running: its own code"): 2.0,
    }
    assert times.idle_s == pytest.approx(0.0025)
    assert times.last_s - times.first_s == pytest.approx(0.0066)

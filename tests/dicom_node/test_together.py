"""Many threads in one piece of work: each gets its own outcome, and nobody waits for ever."""

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from dicom_node.together import (
    MOST,
    MOST_TURNS,
    Behind,
    HandedIn,
    Recent,
    SharedWorkFailed,
    Thrifty,
    Together,
)


@pytest.fixture
def complaints():
    """What was told of a `then` that raised; nothing, where a test does not look for it."""
    found = []
    yield found
    assert found == []


def run_all(together: Together | HandedIn, items: list[int]) -> dict[int, object]:
    """Return what `do` gives or raises for each item, all in threads of their own at once."""
    found: dict[int, object] = {}

    def one(item: int) -> None:
        try:
            found[item] = together.do(item)
        except (ValueError, RuntimeError) as error:
            found[item] = error

    threads = [threading.Thread(target=one, args=(item,)) for item in items]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    return found


@pytest.mark.parametrize(
    "kind", [Together, lambda work: HandedIn(work, print)], ids=["together", "handed in"]
)
def test_each_gets_its_own_outcome_and_its_own_error(kind):
    batches = []

    def work(items):
        batches.append(len(items))
        time.sleep(0.05)
        return [ValueError(str(item)) if item % 3 == 0 else 10 * item for item in items]

    found = run_all(kind(work), list(range(1, 25)))

    for item, outcome in found.items():
        assert str(outcome) == str(item) if item % 3 == 0 else outcome == 10 * item
    assert sum(batches) == 24 and len(batches) < 24  # some were done together


def test_work_that_breaks_tells_one_how_and_leaves_nobody_waiting():
    def work(items):
        time.sleep(0.05)
        raise ValueError("broken")

    found = run_all(Together(work), list(range(8)))

    kinds = [type(outcome) for outcome in found.values()]
    assert len(kinds) == 8 and ValueError in kinds
    assert set(kinds) <= {ValueError, SharedWorkFailed}


def test_alone_it_raises_what_the_work_raises():
    def work(items):
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        Together(work).do(1)


def test_a_thread_goes_on_while_its_work_is_done_but_is_never_too_far_ahead():
    begun, may_end, batches = threading.Semaphore(0), threading.Semaphore(0), []

    def work(items):
        begun.release()
        may_end.acquire(timeout=20)
        batches.append(list(items))
        return [None] * len(items)

    with Behind(work, ahead=3) as behind:
        behind.do(1)
        assert begun.acquire(timeout=20)
        behind.do(2)
        behind.do(3)
        assert batches == []
        may_end.release(2)
        behind.do(4)
        assert batches[0] == [1]
        may_end.release(2)

    assert sum(batches, []) == [1, 2, 3, 4]
    assert [2, 3] == batches[1][:2]  # they waited together


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("breaks", [True, False])
def test_what_fails_behind_is_raised_by_the_next_call_or_at_the_end(breaks):
    def work(items):
        if breaks:
            raise ValueError("broken")
        return [ValueError("broken")] * len(items)

    expected = SharedWorkFailed if breaks else ValueError
    with pytest.raises(expected), Behind(work, ahead=1) as behind:
        behind.do(1)
        behind.do(2)
        pytest.fail("it went on")
    with pytest.raises(expected), Behind(work, ahead=1) as behind:
        behind.do(1)


def test_work_behind_is_gathered_until_somebody_would_have_to_wait_for_it():
    batches = []

    def work(items):
        batches.append(list(items))
        return [None] * len(items)

    with Behind(work, ahead=3, linger_s=3600) as behind:
        for item in range(7):
            behind.do(item)

    assert batches == [[0, 1, 2], [3, 4, 5], [6]]


def test_who_must_know_that_it_is_done_waits_no_longer_than_for_that():
    batches = []

    def work(items):
        batches.append(list(items))
        return [None] * len(items)

    with Behind(work, ahead=200, linger_s=3600) as behind:
        behind.settle()  # nothing
        for item in range(MOST + 3):
            behind.do(item)
        behind.settle()
        assert [len(batch) for batch in batches] == [MOST, 3]
        behind.do(99)
        assert len(batches) == 2  # nobody waits for it
        behind.settle()
        assert batches[2:] == [[99]]


def test_who_waits_for_work_behind_has_its_failure():
    with (
        pytest.raises(ValueError, match="full"),
        Behind(lambda items: [ValueError("full")], 9) as b,
    ):
        b.do(1)
        b.settle()


def test_each_thread_is_ahead_for_itself():
    may_end, everybody, done = threading.Event(), threading.Barrier(6), []

    def work(items):
        may_end.wait(60)
        done.extend(items)
        return [None] * len(items)

    with Behind(work, ahead=1) as behind:

        def run(number):
            behind.do(number)
            everybody.wait(20)  # nobody waits for the work, or this would break

        for number in range(5):
            threading.Thread(target=run, args=(number,)).start()
        everybody.wait(20)
        assert done == []
        may_end.set()

    assert sorted(done) == list(range(5))


def test_a_recent_answer_is_not_asked_for_again():
    asked = []
    hour, at_once = (Recent(lambda: asked.append(1), seconds) for seconds in (3600, 0))
    hour(), hour()
    assert len(asked) == 1
    at_once(), at_once()
    assert len(asked) == 3


class Question:
    """Asked for the second time it is answered, or fails, when `may_answer` is set."""

    def __init__(self, failure=None):
        self.times, self._failure = 0, failure
        self.asking, self.may_answer = threading.Event(), threading.Event()

    def __call__(self):
        self.times += 1
        if self.times == 2:
            self.asking.set()
            self.may_answer.wait(20)
            if self._failure:
                raise self._failure
        return self.times


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("dicom_node.together.time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def test_while_one_asks_anew_the_others_have_the_old_answer(clock):
    question = Question()
    recent = Recent(question, 10)
    with ThreadPoolExecutor(2) as pool:
        assert recent() == 1
        clock.now = 10.0
        who_asks = pool.submit(recent)
        question.asking.wait(20)
        clock.now = 19.9
        assert recent() == 1
        clock.now = 20.0  # the old answer is too old now, for everybody
        who_waits = pool.submit(recent)
        with pytest.raises(TimeoutError):
            who_waits.result(0.2)
        question.may_answer.set()
        assert who_asks.result(20) == who_waits.result(20) == 2

    assert question.times == 2


def test_who_waited_for_an_answer_has_its_failure(clock):
    question = Question(failure=ValueError("gone"))
    recent = Recent(question, 10)
    with ThreadPoolExecutor(3) as pool:
        assert recent() == 1
        clock.now = 20.0
        waiting = [pool.submit(recent)]
        question.asking.wait(20)
        waiting += [pool.submit(recent) for _ in range(2)]
        with pytest.raises(TimeoutError):
            waiting[1].result(0.2)
        clock.now = 50.0
        question.may_answer.set()
        for each in waiting:
            with pytest.raises(ValueError, match="gone"):
                each.result(20)

    assert question.times == 2
    assert recent() == 3  # who comes later asks again


def test_who_cannot_ask_leaves_it_to_the_next():
    answers = iter([ValueError("gone"), 7])

    def ask():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    recent = Recent(ask, 3600)
    with pytest.raises(ValueError, match="gone"):
        recent()
    assert recent() == recent() == 7


def test_an_answer_that_takes_long_is_asked_for_again_after_a_while_only():
    asked = []

    def quick():
        asked.append(1)

    def slow():
        quick()
        time.sleep(0.2)

    at_once, thrifty = Thrifty(quick), Thrifty(slow)
    at_once(), at_once()
    assert len(asked) == 2
    thrifty(), thrifty()
    assert len(asked) == 3


def test_an_answer_that_takes_long_is_asked_for_again_after_its_rest():
    class Restless(Thrifty):
        QUICK_S, REST = 0.0, 1

    asked = []
    answer = Restless(lambda: (asked.append(1), time.sleep(0.2)))
    answer(), answer()
    assert len(asked) == 1
    time.sleep(0.5)
    answer()
    assert len(asked) == 2


def test_who_hands_in_goes_on_and_whoever_works_tells(complaints):
    begun, go_on, told = threading.Event(), threading.Event(), []

    def work(items):
        begun.set()
        go_on.wait(60)
        return [10 * item for item in items]

    handed = HandedIn(work, complaints.append)
    leader = threading.Thread(target=handed.hand_in, args=(1, told.append))
    leader.start()
    assert begun.wait(60)
    for item in (2, 3):
        handed.hand_in(item, lambda outcome: told.append((threading.current_thread(), outcome)))

    assert told == []
    go_on.set()
    leader.join(60)
    assert told == [10, (leader, 20), (leader, 30)]


@pytest.mark.parametrize("wrong", ["raises", "no outcomes", "too few outcomes"])
def test_work_for_others_that_breaks_is_told_to_each(complaints, wrong):
    begun, go_on, told = threading.Event(), threading.Event(), []

    def work(items):
        if not go_on.is_set():
            begun.set()
            go_on.wait(60)
        elif wrong == "raises":
            raise ValueError("broken")
        elif wrong == "too few outcomes":
            return items[:1]
        return items if items == [1] else []

    handed = HandedIn(work, complaints.append)
    leader = threading.Thread(target=handed.hand_in, args=(1, told.append))
    leader.start()
    assert begun.wait(60)
    handed.hand_in(2, told.append)
    handed.hand_in(3, told.append)
    go_on.set()
    leader.join(60)

    assert [type(each) for each in told] == [int, SharedWorkFailed, SharedWorkFailed]
    assert wrong != "raises" or "broken" in str(told[1].__cause__)


def test_who_is_at_work_for_others_cannot_wait_for_it(complaints):
    told = []

    def then(outcome):
        with pytest.raises(SharedWorkFailed, match="cannot wait"):
            handed.do(2)
        told.append(outcome)

    handed = HandedIn(lambda items: items, complaints.append)
    handed.hand_in(1, then)

    assert told == [1] and handed.do(3) == 3


def test_one_who_cannot_be_told_keeps_nobody_from_being_told(complaints):
    begun, go_on, told = threading.Event(), threading.Event(), []

    def work(items):
        begun.set()
        go_on.wait(60)
        return items

    def cannot(outcome):
        raise ValueError("deaf")

    handed = HandedIn(work, complaints.append)
    leader = threading.Thread(target=handed.hand_in, args=(0, told.append))
    leader.start()
    assert begun.wait(60)
    handed.hand_in(1, cannot)
    handed.hand_in(2, told.append)
    go_on.set()
    leader.join(60)

    assert told == [0, 2]
    assert [str(complaints.pop()) for _ in range(1)] == ["deaf"]
    handed.hand_in(3, told.append)
    assert told[-1] == 3


def test_nobody_works_for_others_for_ever(complaints):
    """Each piece of work lasts until the next one is handed in, so that one always waits."""
    leaders, told, last = [], [], 40
    threads = []

    def work(items):
        leaders.append(threading.current_thread())
        if max(items) < last:
            thread = threading.Thread(target=handed.hand_in, args=(max(items) + 1, told.append))
            threads.append(thread)
            thread.start()
            end = time.monotonic() + 20
            while not handed._waiting and time.monotonic() < end:
                time.sleep(0.001)
            time.sleep(0.01)  # until it has seen who works, and how long
        return items

    handed = HandedIn(work, complaints.append)
    handed.hand_in(0, told.append)
    end = time.monotonic() + 60
    while len(told) <= last and time.monotonic() < end:
        time.sleep(0.01)
    for thread in threads:
        thread.join(60)

    assert told == list(range(last + 1))
    most = max(leaders.count(one) for one in leaders)
    assert most <= MOST_TURNS + 1 and not handed._tired


def test_nothing_that_is_handed_in_is_forgotten(complaints):
    told, often = [], sys.getswitchinterval()
    handed = HandedIn(lambda items: items, complaints.append)

    def hand_in(number):
        for item in range(400):
            if item % 7 == 0:
                told.append(handed.do((number, item)))
            else:
                handed.hand_in((number, item), told.append)

    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=hand_in, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    finally:
        sys.setswitchinterval(often)

    assert sorted(told) == [(number, item) for number in range(8) for item in range(400)]
    assert not handed._turn.locked() and not handed._succession.locked()


def test_what_is_handed_in_at_the_end_of_a_turn_is_done(complaints):
    told = []
    handed = HandedIn(lambda items: items, complaints.append)

    class LateComer:
        """The turn; while it is given back for the first time, somebody hands something in."""

        def __init__(self) -> None:
            self.lock, self.came = threading.Lock(), False
            self.acquire, self.locked = self.lock.acquire, self.lock.locked

        def release(self) -> None:
            if not self.came:
                self.came = True
                other = threading.Thread(target=handed.hand_in, args=(2, told.append))
                other.start()
                other.join(60)
            self.lock.release()

    handed._turn = LateComer()
    handed.hand_in(1, told.append)

    assert told == [1, 2]

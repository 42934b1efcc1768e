"""Doing for many threads at once what each of them would wait for alone.

A sync of a folder, or a commit, costs the same for one file or row as for ten. What comes while one
is under way waits, and the next one is for all that waits. Nobody is answered before it is done,
and a thread that is alone waits for nobody.
"""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Generic, Self, TypeVar

from dicom_node.edges import failure_of

In = TypeVar("In")
Out = TypeVar("Out")

MOST = 64  # at once, so that nobody waits for too long a queue
MOST_TURNS = 4  # of one thread for others


class SharedWorkFailed(RuntimeError):
    """The work failed in another thread, which tells how."""


class _Ticket(Generic[In, Out]):
    """One caller's item, and what became of it."""

    def __init__(self, item: In) -> None:
        self.item = item
        self.done = False
        self.outcome: Out | Exception | None = None


class Together(Generic[In, Out]):
    """Calls `work` with the items of all who wait; safe to use from many threads.

    `work` returns one outcome for each item, in their order; an exception among them is raised in
    the thread whose item it belongs to. What `work` itself raises is raised in the thread that
    called it; the others whose items were with it get `SharedWorkFailed`.
    """

    def __init__(self, work: Callable[[Sequence[In]], Sequence[Out | Exception]]) -> None:
        self._work = work
        self._waiting: deque[_Ticket[In, Out]] = deque()
        self._turn = threading.Lock()

    def do(self, item: In) -> Out:
        """Return the outcome of `item` when the work is done."""
        ticket: _Ticket[In, Out] = _Ticket(item)
        self._waiting.append(ticket)
        while not ticket.done:
            with self._turn:
                if not ticket.done:
                    self._do_next()
        if isinstance(ticket.outcome, Exception):
            raise ticket.outcome
        return ticket.outcome  # type: ignore[return-value]

    def _do_next(self) -> None:
        batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), MOST))]
        failed = SharedWorkFailed("work that was done for several at once failed")
        outcomes: Sequence[Out | Exception] = [failed] * len(batch)
        try:
            outcomes = self._work([ticket.item for ticket in batch])
        finally:  # whatever happens, nobody waits for ever
            for ticket, outcome in zip(batch, outcomes, strict=True):
                ticket.outcome = outcome
                ticket.done = True


class HandedIn(Generic[In, Out]):
    """Calls `work` with what several threads have handed in, none of which needs to wait.

    `work` returns as for `Together`; if it raises, `SharedWorkFailed` is each outcome. Who hands
    something in while nobody is at work does it, and what others hand in meanwhile. After
    MOST_TURNS the next who comes takes over, so that nobody works for others for ever.

    Parameters
    ----------
    complain
        Is told what a `then` raised, which is nobody's fault who works.
    """

    def __init__(
        self,
        work: Callable[[Sequence[In]], Sequence[Out | Exception]],
        complain: Callable[[Exception], object],
    ) -> None:
        self._work = work
        self._complain = complain
        self._at_work = 0  # the thread that has the turn
        self._waiting: deque[tuple[In, Callable[[Out | Exception], None]]] = deque()
        self._turn = threading.Lock()
        self._succession = threading.Lock()  # held by who waits for the turn of one who is tired
        self._tired = False

    def hand_in(self, item: In, then: Callable[[Out | Exception], None]) -> None:
        """Have `then` called with what becomes of `item`, before or after this returns.

        It is called by whoever did the work, so it must be brief and raise nothing.
        """
        self._waiting.append((item, then))
        if self._turn.acquire(blocking=False):
            self._lead()
        elif self._tired and self._succession.acquire(blocking=False):
            self._turn.acquire()
            self._succession.release()
            self._lead()

    def do(self, item: In) -> Out:
        """Return the outcome of `item` when the work is done; raise it, if it is an exception.

        Raises
        ------
        SharedWorkFailed
            If it is asked for by a `then`, whose thread would wait for itself.
        """
        if self._at_work == threading.get_ident():
            raise SharedWorkFailed("who is at work for others cannot wait for it")
        outcomes: list[Out | Exception] = []
        done = threading.Lock()
        done.acquire()

        def then(outcome: Out | Exception) -> None:
            outcomes.append(outcome)
            done.release()

        self.hand_in(item, then)
        done.acquire()
        (outcome,) = outcomes
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _lead(self) -> None:
        """Do what waits; the turn is ours.

        Somebody may hand in between our last look and the end of our turn: we look once more.
        """
        turns = 0
        while True:
            self._at_work = threading.get_ident()
            try:
                while self._waiting and not self._succession.locked():
                    self._do_next()
                    turns += 1
                    self._tired = turns >= MOST_TURNS
            finally:
                self._tired, self._at_work = False, 0
                self._turn.release()
            # Who is locked in there has the turn next.
            if not self._waiting or self._succession.locked():
                break
            if not self._turn.acquire(blocking=False):
                break

    def _do_next(self) -> None:
        batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), MOST))]
        failed = SharedWorkFailed("work that was done for several at once failed")
        outcomes: list[Out | Exception] = []
        try:
            items = [item for item, _ in batch]
            failed.__cause__ = failure_of(lambda: outcomes.extend(self._work(items)))
        finally:  # whatever happens, nobody waits for ever
            if len(outcomes) != len(batch):
                outcomes = [failed] * len(batch)
            for (_, then), outcome in zip(batch, outcomes, strict=True):
                error = failure_of(partial(then, outcome))
                if error:
                    failure_of(partial(self._complain, error))


class Behind(Generic[In]):
    """Does for several threads what they would wait for, while they go on.

    What waits is done in a thread of its own; `work` returns as for `Together`. The caller of `do`
    waits only while so many of its own items as it may be `ahead` are not done. The first failure
    ends it: every later call, and the end of the context, raises it. At that end everything is
    done.

    The work begins `linger_s` after the first item has come, or as soon as a thread may go no
    further ahead: a thread that works all the time takes the interpreter from those it works for.
    """

    def __init__(
        self,
        work: Callable[[Sequence[In]], Sequence[None | Exception]],
        ahead: int,
        linger_s: float = 0.0,
    ) -> None:
        """Prepare to call `work`."""
        self._work = work
        self._ahead = ahead
        self._linger_s = linger_s
        self._waiting: list[tuple[int, In]] = []  # with the thread that each belongs to
        self._taken = self._done = 0  # of all that came
        self._wanted = 0  # how many must be done soon: somebody waits
        self._open: Counter[int] = Counter()  # by thread: waiting, or under way
        self._failure: Exception | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="behind", daemon=True)

    def do(self, item: In) -> None:
        """Take `item`, as soon as this thread is not too far ahead."""
        mine = threading.get_ident()
        with self._changed:
            self._changed.wait_for(lambda: self._failure or self._open[mine] < self._ahead)
            if self._failure:
                raise self._failure
            self._open[mine] += 1
            self._taken += 1
            self._waiting.append((mine, item))
            if len(self._waiting) == 1 or self._urgent():
                self._changed.notify_all()

    def settle(self) -> None:
        """Return when all that has been taken until now is done; raise the first failure."""
        with self._changed:
            taken = self._wanted = self._taken
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._failure or self._done >= taken)
            if self._failure:
                raise self._failure

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        if kind is None and self._failure:
            raise self._failure

    def _run(self) -> None:
        while batch := self._next():
            failed = SharedWorkFailed("work that was done behind failed")
            outcomes: Sequence[None | Exception] = [failed]
            try:
                outcomes = self._work([item for _, item in batch])
            finally:  # whatever happens, nobody waits for ever
                with self._changed:
                    self._open.subtract(thread for thread, _ in batch)
                    self._done += len(batch)
                    self._failure = next((each for each in outcomes if each), self._failure)
                    self._changed.notify_all()

    def _next(self) -> list[tuple[int, In]]:
        """Return what waits; nothing at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            self._changed.wait_for(self._urgent, self._linger_s)
            batch, self._waiting = self._waiting[:MOST], self._waiting[MOST:]
        return batch

    def _urgent(self) -> bool:
        """Return whether somebody waits, or there is enough to do at once."""
        ahead = max(self._open.values(), default=0)
        awaited = self._wanted > self._done
        return self._closed or awaited or len(self._waiting) >= MOST or ahead >= self._ahead


class Recent(Generic[Out]):
    """An answer that all threads share for a while.

    One of them asks anew. The others have the old answer meanwhile, until it is twice as old as
    it may be; then they wait, and have what is answered to that question, or its failure.
    """

    def __init__(self, ask: Callable[[], Out], seconds: float) -> None:
        self._ask = ask
        self._seconds = seconds
        self._answer: tuple[Out, float] | None = None  # and until when it is good
        self._failure: tuple[Exception, float] | None = None  # and when it came
        self._turn = threading.Lock()

    def __call__(self) -> Out:
        """Return the answer of so many seconds ago at most, of twice as many while one asks."""
        known, now = self._answer, time.monotonic()
        if known is None or now >= known[1] + self._seconds:
            self._turn.acquire()
        elif now < known[1] or not self._turn.acquire(blocking=False):
            return known[0]
        try:
            if self._failure and self._failure[1] > now:  # of what we have waited for
                raise self._failure[0]
            fresh = self._answer
            if fresh is None or fresh is known:
                fresh = self._answer = self._asked()
            return fresh[0]
        finally:
            self._turn.release()

    def _asked(self) -> tuple[Out, float]:
        until = time.monotonic() + self._seconds
        answers: list[Out] = []
        if error := failure_of(lambda: answers.append(self._ask())):
            self._failure = error, time.monotonic()
            raise error
        return answers[0], until


class Thrifty(Generic[Out]):
    """An answer that is asked for anew the less often, the longer it takes to find.

    What is quick is asked for each time. One thread asks, the others wait for its answer.
    """

    QUICK_S = 0.1
    REST = 20  # times as long as it took beyond that, an answer is good

    def __init__(self, ask: Callable[[], Out]) -> None:
        self._ask = ask
        self._answer: tuple[Out, float] | None = None  # and until when it is good
        self._turn = threading.Lock()

    def __call__(self) -> Out:
        """Return an answer of now, or of a while ago."""
        with self._turn:
            begun = time.monotonic()
            if self._answer is None or begun >= self._answer[1]:
                answer = self._ask()
                ended = time.monotonic()
                rest = self.REST * max(0.0, ended - begun - self.QUICK_S)
                self._answer = answer, ended + rest
            return self._answer[0]

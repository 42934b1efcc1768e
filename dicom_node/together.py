"""Doing for many threads at once what each of them would wait for alone.

A sync of a folder, or a commit, costs the same for one file or row as for ten. Whoever comes while
one is under way waits, and the next one is for all who wait. Nobody is answered before it is done,
and a thread that is alone waits for nobody.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, Self, TypeVar

In = TypeVar("In")
Out = TypeVar("Out")

MOST = 64  # at once, so that nobody waits for too long a queue


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


class OneBehind:
    """Does for each of several threads what it would wait for, while the thread goes on.

    A thread is never more than one call ahead: the next waits for the one before, and raises what
    that has raised. At the end of the context everything is done.
    """

    def __init__(self, work: Callable[..., None], threads: int) -> None:
        """Prepare to call `work` for so many threads."""
        self._work = work
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="one-behind")
        self._last: dict[int, Future[None]] = {}  # by thread

    def do(self, *arguments: Any) -> None:
        """Return when the work before is done and this is under way."""
        mine = threading.get_ident()
        before = self._last.pop(mine, None)
        if before is not None:
            before.result()
        self._last[mine] = self._pool.submit(self._work, *arguments)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._pool.shutdown()
        if kind is None:
            for last in self._last.values():
                last.result()

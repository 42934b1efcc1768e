"""What waits to be sent to one peer: parcels in their order, shared by several associations."""

import threading
from collections import Counter, deque
from collections.abc import Collection, Sequence

from dicom_node.network.negotiation import MOST_CONTEXTS
from dicom_node.network.parcels import Outcome, Parcel, Sendable
from dicom_node.network.requesting import Context

AHEAD = 128  # instances that wait, so that no association runs dry while a parcel is prepared
PATIENCE_S = 1.0  # of an association that has nothing to do


class Agenda:
    """Parcels under way; every instance is with one lane, and every parcel comes to an end.

    A lane is one association after the other; see `scu`. Who prepares the parcels adds them, as
    long as the agenda is `hungry`, and collects those that have ended. A parcel has ended when none
    of its instances waits, because all were tried, or because it was withdrawn, and none is with a
    lane.
    """

    def __init__(self) -> None:
        self._waiting: dict[Parcel, deque[Sendable]] = {}  # of those that have not ended, in order
        self._with_lanes: Counter[Parcel] = Counter()
        self._withdrawn: set[Parcel] = set()
        self._ended: list[Parcel] = []
        self._breaks: Counter[tuple[Parcel, int]] = Counter()
        self._count = 0  # of instances that wait
        self._lanes = 0  # that have not ended
        self._closed = False
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)  # something waits, or never will
        self._news = threading.Condition(self._lock)  # for who prepares the parcels

    # Who prepares the parcels.

    @property
    def hungry(self) -> bool:
        """Return whether another parcel is welcome."""
        return not self._closed and self._count < AHEAD

    @property
    def waiting(self) -> int:
        """Return how many instances wait."""
        return self._count

    @property
    def lanes(self) -> int:
        """Return how many lanes have not ended."""
        return self._lanes

    @property
    def done(self) -> bool:
        """Return whether nothing more comes, and every parcel has been collected."""
        with self._lock:
            return self._done()

    def add(self, parcel: Parcel, waiting: Sequence[Sendable]) -> None:
        """Put a parcel at the end; what cannot be sent of it has its outcome already."""
        with self._lock:
            self._waiting[parcel] = deque(waiting)
            self._count += len(waiting)
            self._look_at(parcel)
            self._work.notify_all()

    def close(self) -> None:
        """Add nothing more."""
        with self._lock:
            self._closed = True
            self._work.notify_all()

    def collect(self, *, wait: bool) -> list[Parcel]:
        """Return the parcels that have ended, once each.

        Parameters
        ----------
        wait
            Until there is one, or the agenda is hungry, or has no lane for what waits, or is done.
        """
        with self._lock:
            if wait:
                self._news.wait_for(
                    lambda: self._ended or self.hungry or self._stranded() or self._done()
                )
            ended, self._ended = self._ended, []
        return ended

    def stop(self) -> None:
        """Withdraw everything."""
        with self._lock:
            self._closed = True
            for parcel in tuple(self._waiting):
                self._withdraw(parcel)
                self._look_at(parcel)
            self._work.notify_all()

    # The lanes.

    def join(self) -> None:
        """Count one lane more."""
        with self._lock:
            self._lanes += 1

    def front(self) -> Parcel | None:
        """Return the parcel that is next, as soon as there is one; None when none will come."""
        with self._lock:
            self._work.wait_for(lambda: self._count or self._closed)
            return self._front()

    def contexts(self) -> list[Context]:
        """Return what an association must be asked for, as far as one can be.

        That is what the parcel at the front needs: a peer may reject the whole association because
        of what another one has, and this one would pay for it.
        """
        with self._lock:
            parcel = self._front()
            waiting = self._waiting[parcel] if parcel else ()
            return list(dict.fromkeys(each.context for each in waiting))[:MOST_CONTEXTS]

    def take(self, contexts: Collection[Context]) -> Sendable | None:
        """Return the next instance, if an association with these contexts can send it.

        None, too, when nothing has come for a while. The parcel at the front goes first: what of it
        needs another association must not wait until all that fits this one is sent.
        """
        with self._lock:
            self._work.wait_for(lambda: self._count or self._closed, PATIENCE_S)
            parcel = self._front()
            if parcel is None:
                return None
            waiting = self._waiting[parcel]
            for place, each in enumerate(waiting):
                if each.context in contexts:
                    del waiting[place]
                    self._with_lanes[parcel] += 1
                    self._counted(-1)
                    return each
        return None

    def settle(self, each: Sendable, outcome: Outcome | None) -> None:
        """Take back an instance that a lane has done with; None: it was not tried."""
        with self._lock:
            self._settle(each, outcome)

    def put_back(self, each: Sendable, resumes: int) -> bool:
        """Let an instance whose association broke be the next; False where it has broken enough."""
        with self._lock:
            parcel = each.parcel
            self._breaks[parcel, each.item.key] += 1
            if self._breaks[parcel, each.item.key] > resumes:
                return False
            if parcel not in self._withdrawn:
                self._waiting[parcel].appendleft(each)
                self._counted(1)
                self._work.notify()
            self._settle(each, None)
        return True

    def withdraw(self, parcel: Parcel, error: Exception | None = None) -> None:
        """Let nothing more of a parcel be sent, because of `error` where there is one."""
        with self._lock:
            self._withdraw(parcel, error)
            self._look_at(parcel)

    def leave(self, blamed: Parcel | None) -> None:
        """End one lane; the last one withdraws the parcel that is to blame, if there is one."""
        with self._lock:
            self._lanes -= 1
            if blamed and not self._lanes:
                self._withdraw(blamed)
                self._look_at(blamed)
            self._news.notify()

    def crash(self, at_hand: Sendable | None, error: Exception) -> None:
        """End a lane that failed as nobody foresaw.

        The parcel of what it had at hand is withdrawn. Without that the others go on; of the last
        lane it is the parcel at the front.
        """
        with self._lock:
            self._lanes -= 1
            parcel = at_hand.parcel if at_hand else None if self._lanes else self._front()
            if parcel:
                self._withdraw(parcel, error)
                self._look_at(parcel)
            if at_hand:
                self._settle(at_hand, None)
            self._news.notify()

    def leave_without(self, asked: Collection[Context]) -> Sendable | None:
        """End a lane that has no association; it was asked for these contexts.

        Its share is for the others. Of the last one its fault is the outcome of the instance that
        is returned, after which nothing more of the same parcel is sent. None, too, where what is
        next by now was not asked for: a fresh lane does.
        """
        with self._lock:
            self._lanes -= 1
            self._news.notify()
            parcel = None if self._lanes else self._front()
            if parcel is None or self._waiting[parcel][0].context not in asked:
                return None
            first = self._waiting[parcel].popleft()
            self._with_lanes[parcel] += 1
            self._counted(-1)
            self._withdraw(parcel)
            return first

    # With the lock held.

    def _front(self) -> Parcel | None:
        return next((parcel for parcel, waiting in self._waiting.items() if waiting), None)

    def _stranded(self) -> bool:
        return bool(self._count and not self._lanes)

    def _done(self) -> bool:
        return self._closed and not self._waiting and not self._ended

    def _counted(self, change: int) -> None:
        self._count += change
        if self._count == AHEAD - 1:
            self._news.notify()

    def _settle(self, each: Sendable, outcome: Outcome | None) -> None:
        self._with_lanes[each.parcel] -= 1
        if outcome:
            each.parcel.outcomes.append(outcome)
        self._look_at(each.parcel)

    def _withdraw(self, parcel: Parcel, error: Exception | None = None) -> None:
        waiting = self._waiting.get(parcel)
        if waiting is None:  # it has ended meanwhile
            return
        parcel.error = parcel.error or error
        self._withdrawn.add(parcel)
        self._count -= len(waiting)
        waiting.clear()
        self._news.notify()

    def _look_at(self, parcel: Parcel) -> None:
        """Let a parcel end, if it does."""
        waiting = self._waiting.get(parcel)
        if waiting is None or waiting or self._with_lanes[parcel]:
            return
        del self._waiting[parcel], self._with_lanes[parcel]
        self._withdrawn.discard(parcel)
        self._ended.append(parcel)
        self._news.notify()

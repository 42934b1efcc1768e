"""In which order what is queued is begun, and why something waits (pure).

Urgent goes before normal, normal before low, each in the order of arrival. Nobody starves: whoever
would come too late otherwise takes turns with the urgent ones. Outside of its time window a series
waits, and so does one whose sender has used up its quota, unless it is urgent.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import zip_longest

URGENT, NORMAL, LOW = "urgent", "normal", "low"
PRIORITIES = {URGENT: 0, NORMAL: 1, LOW: 2}
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
MINUTES_OF_DAY = 24 * 60
WINDOW = re.compile(
    r"(?:(?P<days>[a-z]{3}(?:[-,][a-z]{3})*) )?"
    r"(?P<from>[0-2]\d:[0-5]\d)-(?P<to>[0-2]\d:[0-5]\d)"
)


@dataclass(frozen=True, kw_only=True)
class Quota:
    """What one sender may use at a time; 0: as much as there is."""

    running: int = 0  # series in workers
    per_h: int = 0  # series begun within an hour


@dataclass(frozen=True, kw_only=True)
class Order:
    """The configuration of the queue."""

    within_s: Mapping[str, float] = field(default_factory=lambda: {NORMAL: 1800.0, LOW: 14400.0})
    job_s: float = 60.0  # that one job takes, roughly
    quotas: Mapping[str, Quota] = field(default_factory=dict)  # by AE title


ANY_ORDER = Order()  # of a node that is not configured


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """One queued job."""

    job_id: int
    priority: str
    queued_at: datetime
    not_before: datetime | None = None
    windows: tuple[str, ...] = ()
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is under way, by sender; and whether it was an urgent job that was begun last."""

    running: Mapping[str, int] = field(default_factory=dict)
    begun: Mapping[str, int] = field(default_factory=dict)  # within the last hour
    urgent_last: bool = False


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a job stands in the queue: its position from 1, or why it has none for now."""

    job_id: int
    position: int | None
    aged: bool = False
    waits_for: str = ""


def line_up(waiting: Sequence[Waiting], order: Order, load: Load, now: datetime) -> list[Place]:
    """Return every queued job: first those that may be begun, in their order, then the others."""
    blocked = {one.job_id: why for one in waiting if (why := obstacle(one, order, load, now))}
    ready = [one for one in waiting if one.job_id not in blocked]
    aged = pressing(ready, order, now)
    places = [
        Place(job_id=one.job_id, position=number, aged=one.job_id in aged)
        for number, one in enumerate(in_turn(ready, aged, load.urgent_last), 1)
    ]
    return places + [
        Place(job_id=one.job_id, position=None, waits_for=blocked[one.job_id])
        for one in sorted(waiting, key=arrival)
        if one.job_id in blocked
    ]


def in_turn(ready: Sequence[Waiting], aged: Sequence[int], urgent_last: bool) -> Iterator[Waiting]:
    """Yield the jobs that may be begun in their order; an urgent one never waits for two others."""
    by_id = {one.job_id: one for one in ready}
    old = [by_id[job_id] for job_id in aged]
    by_age = sorted(ready, key=arrival)
    urgent = [one for one in by_age if one.priority == URGENT]
    pairs = zip_longest(old, urgent) if urgent_last else zip_longest(urgent, old)
    yield from (one for pair in pairs for one in pair if one is not None)
    rest = [one for one in by_age if one.priority != URGENT and one.job_id not in aged]
    yield from sorted(rest, key=lambda one: PRIORITIES.get(one.priority, PRIORITIES[NORMAL]))


def arrival(one: Waiting) -> tuple[datetime, int]:
    """Return by what equals are sorted."""
    return one.queued_at, one.job_id


def pressing(ready: Sequence[Waiting], order: Order, now: datetime) -> list[int]:
    """Return the jobs that must take turns with urgent ones from now on, the next to be due first.

    While both take turns, the one that is due as number k is begun after 2k jobs at the latest:
    when that would be too late for one, all that are due before it are pressing.
    """
    due = sorted(
        (one.queued_at + timedelta(seconds=order.within_s[one.priority]), one.job_id)
        for one in ready
        if one.priority in order.within_s
    )
    number = 0
    for k, (at, _) in enumerate(due, 1):
        if (at - now).total_seconds() <= 2 * k * order.job_s:
            number = k
    return [job_id for _, job_id in due[:number]]


def obstacle(one: Waiting, order: Order, load: Load, now: datetime) -> str:
    """Return why a job may not be begun now, as people read it; "" when it may."""
    if one.not_before is not None and one.not_before > now:
        return f"another attempt at {clock(one.not_before)}"
    if one.windows and not is_open(one.windows, now.astimezone()):
        return f"its time window, {' or '.join(one.windows)}"
    return "" if one.priority == URGENT else quota_used_up(one.source, order, load)


def quota_used_up(source: str, order: Order, load: Load) -> str:
    """Return which quota of a sender is used up; "" when none is."""
    quota = order.quotas.get(source, Quota())
    if quota.running and load.running.get(source, 0) >= quota.running:
        return f"the quota of {source}: {quota.running} series at a time"
    if quota.per_h and load.begun.get(source, 0) >= quota.per_h:
        return f"the quota of {source}: {quota.per_h} series an hour"
    return ""


def clock(at: datetime) -> str:
    """Return a time of day, local."""
    return at.astimezone().strftime("%H:%M:%S")


def is_open(windows: Sequence[str], local: datetime) -> bool:
    """Return whether one of the windows is open at `local`, a time on the machine's own clock."""
    return any(within(parse_window(each), local) for each in windows)


@dataclass(frozen=True, kw_only=True)
class Window:
    """A part of certain days; one that ends before it begins ends on the next day."""

    days: frozenset[int]  # 0: Monday
    begin: int  # minutes since midnight
    end: int


def within(window: Window, local: datetime) -> bool:
    """Return whether a window is open; it belongs to the day on which it began."""
    minute, today = local.hour * 60 + local.minute, local.weekday()
    if window.begin < window.end:
        return today in window.days and window.begin <= minute < window.end
    yesterday = (local - timedelta(days=1)).weekday()
    late, early = minute >= window.begin, minute < window.end
    return (today in window.days and late) or (yesterday in window.days and early)


def parse_window(text: str) -> Window:
    """Return the window that ``22:00-06:00`` or ``sat,sun 00:00-24:00`` means.

    Raises
    ------
    ValueError
        If it means none.
    """
    found = WINDOW.fullmatch(text.strip().lower())
    if found is None:
        raise ValueError(f'{text!r} is no time window like "22:00-06:00" or "sat,sun 00:00-24:00"')
    begin, end = (minutes(found[name]) for name in ("from", "to"))
    if begin == end or begin >= MINUTES_OF_DAY or end > MINUTES_OF_DAY:
        raise ValueError(f"{text!r} is no time window: it begins at {found['from']}")
    return Window(days=days_of(found["days"], text), begin=begin, end=end)


def minutes(text: str) -> int:
    """Return the minutes since midnight of ``HH:MM``."""
    hours, rest = text.split(":")
    return int(hours) * 60 + int(rest)


def days_of(text: str | None, whole: str) -> frozenset[int]:
    """Return the days of ``mon-fri`` or ``sat,sun``; every day where none is named."""
    if text is None:
        return frozenset(range(7))
    named: set[int] = set()
    for part in text.split(","):
        ends = part.split("-")
        if len(ends) > 2 or set(ends) - set(DAYS):
            raise ValueError(f"{whole!r} names other days than {', '.join(DAYS)}")
        first, last = DAYS.index(ends[0]), DAYS.index(ends[-1])
        named |= {day % 7 for day in range(first, last + 1 + (7 if last < first else 0))}
    return frozenset(named)

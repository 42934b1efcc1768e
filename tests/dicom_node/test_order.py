"""The order of the queue: urgent first, nobody starves, windows and quotas hold back visibly."""

from datetime import UTC, datetime, timedelta

import pytest

from dicom_node.order import (
    ANY_ORDER,
    Load,
    Order,
    Quota,
    Waiting,
    is_open,
    line_up,
    parse_window,
)

NOW = datetime(2026, 3, 4, 12, 0, tzinfo=UTC)  # a Wednesday
NIGHT = "22:00-06:00"
IDLE = Load()


def waiting(job_id: int, priority: str = "normal", age_s: float = 0.0, **more) -> Waiting:
    queued_at = NOW - timedelta(seconds=age_s)
    return Waiting(job_id=job_id, priority=priority, queued_at=queued_at, **more)


def order_of(jobs, order=ANY_ORDER, load=IDLE, now=NOW) -> list[int]:
    return [one.job_id for one in line_up(jobs, order, load, now) if one.position is not None]


def test_urgent_goes_before_normal_before_low_each_by_arrival():
    jobs = [
        waiting(1, "low", 50), waiting(2, "normal", 40), waiting(3, "urgent", 10),
        waiting(4, "normal", 45), waiting(5, "urgent", 20),
    ]  # fmt: skip

    assert order_of(jobs) == [5, 3, 4, 2, 1]


def test_with_twenty_queued_an_urgent_one_is_next():
    jobs = [waiting(number, age_s=100 - number) for number in range(1, 21)]

    assert order_of([*jobs, waiting(21, "urgent")])[:2] == [21, 1]


def test_what_would_come_too_late_goes_before_what_came_earlier():
    order = Order(within_s={"normal": 600, "low": 3600}, job_s=30)
    jobs = [waiting(1, "low", 3541), waiting(2, "normal", 400), waiting(3, "normal", 300)]

    assert order_of(jobs, order) == [1, 2, 3]
    assert order_of([*jobs, waiting(4, "urgent")], order) == [4, 1, 2, 3]
    after_an_urgent_one = Load(urgent_last=True)
    assert order_of([*jobs, waiting(4, "urgent")], order, after_an_urgent_one) == [1, 4, 2, 3]


def test_urgent_and_pressing_ones_take_turns():
    order = Order(within_s={"normal": 10}, job_s=1)
    old = [waiting(number, age_s=100 - number) for number in (1, 2, 3)]
    urgent = [waiting(number, "urgent", 50 - number) for number in (11, 12)]

    assert order_of(old + urgent, order) == [11, 1, 12, 2, 3]
    assert order_of(old + urgent, order, Load(urgent_last=True)) == [1, 11, 2, 12, 3]


@pytest.mark.parametrize("job_s", [5, 20, 60, 85])
def test_under_a_stream_of_urgent_ones_no_normal_one_waits_longer_than_the_bound(job_s):
    """One worker, 20 normal series at the start, and always an urgent one waiting."""
    order = Order(within_s={"normal": 3600}, job_s=job_s)
    jobs = [Waiting(job_id=n, priority="normal", queued_at=NOW) for n in range(1, 21)]
    now, load, begun_after_s, urgents = NOW, Load(), {}, 100
    while len(begun_after_s) < 20:
        urgents += 1
        jobs.append(Waiting(job_id=urgents, priority="urgent", queued_at=now))
        first = line_up(jobs, order, load, now)[0]
        jobs = [one for one in jobs if one.job_id != first.job_id]
        load = Load(urgent_last=first.job_id > 20)
        if first.job_id <= 20:
            begun_after_s[first.job_id] = (now - NOW).total_seconds()
        now += timedelta(seconds=job_s)

    assert list(begun_after_s) == list(range(1, 21))
    assert max(begun_after_s.values()) <= 3600
    assert urgents >= 120  # and the urgent ones had every second turn at least


def test_a_series_outside_of_its_window_waits_and_says_for_what():
    at_night = NOW.astimezone().replace(hour=23)
    jobs = [waiting(1, age_s=9e5, windows=(NIGHT,)), waiting(2)]

    places = line_up(jobs, ANY_ORDER, Load(), NOW.astimezone().replace(hour=12))
    assert [(one.job_id, one.position) for one in places] == [(2, 1), (1, None)]
    assert places[1].waits_for == "its time window, 22:00-06:00"
    assert order_of(jobs, now=at_night) == [1, 2]


def test_a_quota_holds_back_its_peer_alone_and_nothing_urgent():
    order = Order(quotas={"MR1": Quota(running=1, per_h=3), "MR2": Quota(per_h=3)})
    jobs = [
        waiting(1, age_s=99, source="MR1"), waiting(2, source="MR2"), waiting(3, source="MR3"),
        waiting(4, "urgent", source="MR1"),
    ]  # fmt: skip

    places = line_up(jobs, order, Load(running={"MR1": 1}, begun={"MR2": 3}), NOW)

    assert [(one.job_id, one.position) for one in places] == [(4, 1), (3, 2), (1, None), (2, None)]
    assert [one.waits_for for one in places[2:]] == [
        "the quota of MR1: 1 series at a time", "the quota of MR2: 3 series an hour",
    ]  # fmt: skip


def test_another_attempt_waits_for_its_time():
    [place] = line_up([waiting(1, not_before=NOW + timedelta(hours=1))], ANY_ORDER, Load(), NOW)

    assert place.position is None and "another attempt at " in place.waits_for


@pytest.mark.parametrize(
    ("window", "day", "clock", "open_then"),
    [
        (NIGHT, 4, "21:59", False), (NIGHT, 4, "22:00", True), (NIGHT, 5, "05:59", True),
        (NIGHT, 5, "06:00", False), ("08:00-12:00", 4, "12:00", False),
        ("sat,sun 00:00-24:00", 7, "00:00", True), ("sat,sun 00:00-24:00", 6, "23:59", False),
        ("mon-fri 18:00-07:00", 7, "06:00", True),  # Friday's night
        ("mon-fri 18:00-07:00", 9, "06:00", False),  # Sunday's
        ("fri-mon 00:00-24:00", 8, "10:00", True), ("fri-mon 00:00-24:00", 10, "10:00", False),
    ],
)  # fmt: skip
def test_a_window_is_open(window, day, clock, open_then):
    local = datetime.strptime(f"2026-03-{day:02d} {clock}", "%Y-%m-%d %H:%M")  # the 4th: Wednesday

    assert is_open([window], local) == open_then


@pytest.mark.parametrize(
    "text", ["", "22-06", "22:00", "25:00-26:00", "24:00-06:00", "10:00-10:00", "foo 10:00-11:00"]
)
def test_what_is_no_window_is_refused(text):
    with pytest.raises(ValueError, match="time window|days"):
        parse_window(text)

"""What a connection may cost, without any connection."""

import pytest
from structlog.testing import capture_logs

from dicom_node import telemetry
from dicom_node.network.limits import Complaints, LimitExceeded, Limits, Meter, Seats


class Clock:
    """Time that stands still until it is told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_one_peer_cannot_take_every_seat():
    seats = Seats(Limits(associations=3, associations_per_peer=2))

    assert [seats.take("a"), seats.take("a"), seats.take("b")] == ["", "", ""]
    assert seats.take("c") == "3 associations are open"
    seats.leave("b")
    assert seats.take("a") == "a has 2 associations open"
    assert seats.take("c") == ""


def test_an_announced_length_is_refused_before_anything_is_read(clock):
    meter = Meter(Limits(pdu_bytes=100), clock)

    meter.add(100)
    with pytest.raises(LimitExceeded, match="a PDU of 101 bytes is announced, 100 is the most"):
        meter.add(101)


def test_a_message_of_many_small_pdus_has_a_limit_and_the_next_one_begins_anew(clock):
    meter = Meter(Limits(message_bytes=250), clock)

    for _ in range(5):
        meter.add(100)
        meter.add(100)
        meter.restart()
    meter.add(250)
    with pytest.raises(LimitExceeded, match="exceeds 250 bytes"):
        meter.add(1)


def test_a_message_that_drips_is_cut_and_a_slow_one_is_not(clock):
    meter = Meter(Limits(pdu_s=10, message_bytes_per_s=100), clock)
    for _ in range(60):
        meter.add(100)
        clock.now += 1

    meter.restart()
    meter.add(6)
    clock.now += 9
    meter.add(6)
    clock.now += 2
    with pytest.raises(LimitExceeded, match="18 bytes of a message in 11 s"):
        meter.add(6)


def test_the_pause_between_two_messages_does_not_count(clock):
    meter = Meter(Limits(pdu_s=10, message_bytes_per_s=100), clock)
    meter.add(6)
    meter.restart()
    clock.now += 1000

    meter.add(6)


def test_a_flood_is_counted_in_full_and_logged_a_few_times(clock):
    def total():
        return telemetry.connections_refused.labels(kind="test junk")._value.get()

    complaints = Complaints(telemetry.Throttle(most=3, window_s=60, clock=clock))
    before = total()
    with capture_logs() as flooded:  # wherever other tests have sent the log
        for _ in range(1000):
            complaints.note("test junk", "connection.refused", address="192.0.2.1")
    clock.now += 61
    with capture_logs() as after:
        complaints.note("test junk", "connection.refused", address="192.0.2.1")

    assert total() - before == 1001
    assert [line["event"] for line in flooded] == ["connection.refused"] * 3
    assert len(after) == 1 and 997 in after[0].values()

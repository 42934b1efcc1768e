"""Guesses, sessions and names: what the gate goes by."""

import pytest

from dicom_node.settings import WebSettings
from dicom_node.web.auth import MOST_ADDRESSES, MOST_SESSIONS, Denied, Guard, Guesses, Sessions
from dicom_node.web.auth import digest as digest_of
from dicom_node.web.tokens import NOBODY, TokenFile


class Clock:
    """A clock that the test turns."""

    now = 1000.0

    def __call__(self):
        return self.now


def test_who_guesses_too_often_waits_and_then_may_try_again():
    clock = Clock()
    guesses = Guesses(most=3, window_s=60.0, clock=clock)

    assert [guesses.take("192.0.2.1") for _ in range(3)] == [0, 0, 0]
    assert guesses.take("192.0.2.1") == 61
    assert guesses.take("192.0.2.2") == 0
    clock.now += 60.0
    assert guesses.take("192.0.2.1") == 0


def test_an_attempt_that_succeeds_is_no_guess():
    guesses = Guesses(most=2)

    for _ in range(10):
        assert guesses.take("192.0.2.1") == 0
        guesses.give_back("192.0.2.1")


def test_one_ipv6_site_is_one_address():
    guesses = Guesses(most=1)

    assert guesses.take("2001:db8::1") == 0
    assert guesses.take("2001:db8::ffff") > 0
    assert guesses.take("2001:db8:0:1::1") == 0


def test_guesses_from_everywhere_cost_bounded_memory():
    guesses = Guesses(most=1)
    for number in range(MOST_ADDRESSES + 100):
        guesses.take(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")

    assert len(guesses._failed) == MOST_ADDRESSES


def test_a_session_ends_by_itself():
    clock = Clock()
    sessions = Sessions(60.0, clock)
    key = digest_of(sessions.begin(NOBODY))

    clock.now += 59.9
    assert sessions.find(key) is not None
    clock.now += 0.1
    assert sessions.find(key) is None


def test_sessions_are_bounded_and_the_oldest_goes():
    sessions = Sessions(60.0)
    first = digest_of(sessions.begin(NOBODY))
    last = [digest_of(sessions.begin(NOBODY)) for _ in range(MOST_SESSIONS)][-1]

    assert sessions.find(first) is None and sessions.find(last) is not None


@pytest.mark.parametrize(
    ("host", "ours"),
    [
        ("localhost:8080", True),
        ("LOCALHOST", True),
        ("127.0.0.1", True),
        ("[::1]:8080", True),
        ("192.0.2.7:8080", True),
        ("node.example.org", True),
        ("node.example.org.:8080", True),
        ("evil.example.org", False),
        ("node.example.org.evil.example", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("evil@node", False),
        ("[::1", False),
        ("", False),
    ],
)
def test_a_foreign_name_is_not_answered(tmp_path, host, ours):
    settings = WebSettings(names=("node.example.org",))
    guard = Guard(settings=settings, tokens=TokenFile(tmp_path), sessions=Sessions(60.0))

    if ours:
        guard.refuse_foreign_name(host)
    else:
        with pytest.raises(Denied) as refused:
            guard.refuse_foreign_name(host)
        assert refused.value.code == 421

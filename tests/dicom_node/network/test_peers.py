"""The doorkeeper."""

import time

import pytest

from dicom_node.network import peers
from dicom_node.network.peers import Admission, Caller, Directory, Rejection
from dicom_node.settings import PeerSettings

SCANNER = PeerSettings(name="scanner", ae_title="MR1", host="127.0.0.1")
SECOND = PeerSettings(name="second", ae_title="MR1", host="10.1.1.1")
ANYWHERE = PeerSettings(name="anywhere", ae_title="MR2")
WARD = PeerSettings(name="ward", ae_title="MR3", addresses=("192.168.7.0/24", "fd00::/8"))
PACS = PeerSettings(
    name="pacs", ae_title="PACS", host="localhost", port=4242, roles=("destination",)
)
BOTH = PeerSettings(name="both", ae_title="PACS", host="localhost", roles=("source",))
NAMELESS = PeerSettings(name="nameless", ae_title="MR4", host="no-such-host.invalid")
ADMISSION = Admission("SRNODE", (SCANNER, SECOND, ANYWHERE, WARD, PACS, NAMELESS))


def judge(calling, address="127.0.0.1", called="SRNODE", admission=ADMISSION):
    return admission.judge(Caller(calling_ae=calling, called_ae=called, address=address))


@pytest.mark.parametrize(
    ("calling", "address", "peer"),
    [
        ("MR1", "127.0.0.1", SCANNER),
        ("MR1 ", "127.0.0.1", SCANNER),
        ("MR1", "::ffff:127.0.0.1", SCANNER),
        ("MR1", "10.1.1.1", SECOND),
        ("MR2", "203.0.113.9", ANYWHERE),
        ("MR3", "192.168.7.200", WARD),
        ("MR3", "fd12::1", WARD),
        ("PACS", "127.0.0.1", PACS),
    ],
)
def test_known_peer_is_admitted(calling, address, peer):
    assert judge(calling, address) is peer


@pytest.mark.parametrize(
    ("calling", "address", "called", "answer"),
    [
        ("MR1", "127.0.0.1", "OTHER", (1, 1, 7)),  # called AE title not recognised
        ("STRANGER", "127.0.0.1", "SRNODE", (1, 1, 3)),  # calling AE title not recognised
        ("", "127.0.0.1", "SRNODE", (1, 1, 3)),
        ("MR1", "10.9.9.9", "SRNODE", (1, 1, 3)),
        ("MR3", "192.168.8.1", "SRNODE", (1, 1, 3)),
        ("MR4", "127.0.0.1", "SRNODE", (1, 1, 3)),  # its host name does not resolve
        ("mr1", "127.0.0.1", "SRNODE", (1, 1, 3)),  # AE titles know upper and lower case
    ],
)
def test_everybody_else_is_rejected_for_the_right_reason(calling, address, called, answer):
    verdict = judge(calling, address, called)

    assert isinstance(verdict, Rejection)
    assert (verdict.result, verdict.source, verdict.reason) == answer
    assert verdict.why


def test_of_two_peers_with_one_title_the_source_is_meant():
    assert judge("PACS", admission=Admission("SRNODE", (PACS, BOTH))) is BOTH


SAFE = PeerSettings(name="safe", ae_title="MR5", tls=True, tls_name="MR5.example")


@pytest.mark.parametrize(
    ("secure", "names", "reason"),
    [
        (False, (), 1),  # it must use TLS: no reason given
        (True, ("mr6.example",), 3),
        (True, (), 3),
        (True, ("mr5.example", "10.0.0.5"), None),
    ],
)
def test_peer_must_identify_itself_as_configured(secure, names, reason):
    caller = Caller(
        calling_ae="MR5",
        called_ae="SRNODE",
        address="192.0.2.5",
        secure=secure,
        names=frozenset(names),
    )
    verdict = Admission("SRNODE", (SAFE,)).judge(caller)

    assert verdict is SAFE if reason is None else verdict.reason == reason


def test_only_addresses_of_peers_are_welcome():
    door = Admission("SRNODE", (SCANNER, WARD, PACS))

    assert door.welcome("127.0.0.1") and door.welcome("192.168.7.1")
    assert not door.welcome("192.168.8.1")
    assert ADMISSION.welcome("203.0.113.9")  # one peer may call from anywhere


def test_a_host_that_moves_is_known_there_a_minute_later(monkeypatch):
    now, lives_at = [0.0], ["192.0.2.1"]
    monkeypatch.setattr(peers, "resolve", lambda host: frozenset(map(peers.plain, lives_at)))
    directory = Directory(["scanner.example"], clock=lambda: now[0])

    def knows(address):
        return peers.plain(address) in directory.addresses("scanner.example")

    lives_at[:] = ["192.0.2.2"]
    assert knows("192.0.2.1") and not knows("192.0.2.2")
    now[0] = 61.0
    deadline = time.monotonic() + 5
    while not knows("192.0.2.2") and time.monotonic() < deadline:
        time.sleep(0.01)
    assert knows("192.0.2.2") and not knows("192.0.2.1")

    lives_at.clear()  # the name server is away: what is known stays known
    now[0] = 200.0
    knows("192.0.2.2")
    time.sleep(0.1)
    assert knows("192.0.2.2")

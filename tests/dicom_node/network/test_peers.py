"""The doorkeeper."""

import pytest

from dicom_node.network.peers import Admission, Caller, Rejection
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

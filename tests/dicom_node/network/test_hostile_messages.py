"""Messages that fuzzing found answered by an exception: each has its status now."""

import io
import json
import threading
import time

import pytest

from dicom_node import telemetry
from tests.faults import fuzz_wire as wire
from tests.faults.fuzz_data import identity
from tests.faults.fuzz_line import opened, statuses_in
from tests.rigs import running_node

STORE_FIELDS = {"C-GET-RQ": 0x0010, "C-FIND-RQ": 0x0020, "N-CREATE-RQ": 0x0140}


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    with running_node(tmp_path_factory.mktemp("node")) as rig:
        yield rig.scp.port


def ask(port: int, data: bytes) -> list[int]:
    """Return the statuses of the answers to a message, until the node cuts us off or answers."""
    line, found = opened(port, wire.good_request((1, 3, 17))), []
    line.send(data)
    while not found and (pdu := line.pdu(time.monotonic() + 30)):
        found.extend(statuses_in(pdu))
    line.close()
    return found


def commitment(action_information: bytes) -> bytes:
    """Return an N-ACTION-RQ of storage commitment."""
    elements = [
        (0x0003, wire.even(wire.COMMITMENT.encode())),
        (0x0100, wire.us(0x0130)),
        (0x0110, wire.us(5)),
        (0x0800, wire.us(1)),
        (0x1001, wire.even(wire.COMMITMENT_INSTANCE.encode())),
        (0x1008, wire.us(1)),
    ]
    return wire.message(17, wire.command(elements), action_information)


@pytest.mark.parametrize("field", STORE_FIELDS.values(), ids=STORE_FIELDS)
def test_another_command_for_a_storage_class_is_unrecognised(port, field):
    elements = wire.store_elements(wire.MR, "1.2.3")
    elements = [(tag, wire.us(field) if tag == 0x0100 else value) for tag, value in elements]

    assert ask(port, wire.message(3, wire.command(elements), identity())) in ([0x0211], [])


@pytest.mark.parametrize(
    "information",
    [
        b"\x08\x00",
        wire.element(0x00081195, b"1.2.3\0") + wire.element(0x00081199, b"\xfe\xff\x00\xe0\xff"),
        wire.element(0x00081195, b"1.2\xff\xfe3"),
    ],
    ids=["cut short", "damaged item", "no text"],
)
def test_damaged_action_information_is_an_invalid_argument(port, information):
    assert ask(port, commitment(information)) == [0x0115]


def test_a_thread_that_dies_is_logged_without_its_words():
    stream = io.StringIO()
    before = threading.excepthook
    telemetry.configure_logging(stream)
    try:
        thread = threading.Thread(target=int, args=("Rig^Patricia",))
        thread.start()
        thread.join()
    finally:
        threading.excepthook = before

    said = json.loads(stream.getvalue().splitlines()[-1])
    assert said["event"] == "thread.died" and said["exception"]["type"] == "ValueError"
    assert "Patricia" not in stream.getvalue()

"""A short flood of useless connections; `python -m tests.faults.connections` is the long one."""

import socket

from tests.faults.connections import Scanner, ServingNode, Tally, run
from tests.faults.flood import KINDS


def test_a_scanner_is_served_while_others_flood(tmp_path):
    tally = run(tmp_path, count=480, seed=3)

    assert sum(tally.kinds.values()) == 480 and set(tally.kinds) == set(KINDS)
    assert tally.clean, vars(tally)
    assert tally.log_lines < 250, vars(tally)


def test_a_node_without_file_descriptors_goes_on_serving(tmp_path):
    tally = Tally()
    with ServingNode(tmp_path / "node") as node:
        scanner = Scanner(node.port, tmp_path / "scan", tally)
        scanner.send()
        node.allow_files(node.open_files() + 40)
        waiting = [socket.create_connection(("127.0.0.1", node.port)) for _ in range(200)]
        for _ in range(3):
            scanner.send()
        for connection in waiting:
            connection.close()

    assert tally.sends == 4 and not tally.sends_failed, vars(tally)
    assert tally.slowest_send_s < 5

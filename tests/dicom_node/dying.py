"""Retention in processes that are killed at a place of one's choice.

``python -m tests.dicom_node.dying`` reads orders from standard input, one JSON document in a line,
and answers each with the exit codes of the children that it forked for it: after the imports, so
that a child costs nothing, and from a process without threads.
"""

import json
import os
import signal
import sys
import traceback
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from dicom_node import retention
from dicom_node.settings import Settings
from dicom_node.store import open_store

LATER = datetime(2036, 1, 1, tzinfo=UTC)  # when everything is old enough


def purge_and_die(settings: Settings, place: str, passed: int) -> None:
    """Run retention until it comes to `place`, a statement or an audit event, and die there."""
    left = [passed]

    def arrive(where: str) -> None:
        if where.startswith(place):
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1

    def execute(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        arrive(statement)

    store = open_store(settings.database_url)
    sa.event.listen(store.database.engine, "before_cursor_execute", execute)
    sys.addaudithook(lambda event, arguments: arrive(event))
    list(retention.purge(store, settings, LATER))


def child(order: dict[str, Any]) -> int:
    """Return the process id of a new child that carries out `order`."""
    pid = os.fork()
    if pid:
        return pid
    try:
        sys.stdout = sys.stderr  # our parent answers there
        settings = Settings.model_validate_json(order["settings"])
        purge_and_die(settings, order["place"], order["passed"])
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def main() -> None:
    """Carry out orders until standard input ends."""
    for line in sys.stdin:
        order = json.loads(line)
        pids = [child(order) for _ in range(order["children"])]
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        print(json.dumps(codes), flush=True)


if __name__ == "__main__":
    main()

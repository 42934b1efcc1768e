"""One database belongs to one node: a lock that ends with the process that holds it.

Two nodes would give back each other's jobs, and take each other's pixel files for lost ones.
"""

import threading
from datetime import UTC
from typing import Any, Self

import sqlalchemy as sa

from dicom_node.errors import DatabaseTaken, StoreUnavailable
from dicom_node.store.database import AWAY, Database, error_text
from dicom_node.telemetry import get_logger

NODE_LOCK = 4705  # any number: PostgreSQL advisory lock of the node that serves
LOOK_S = 10.0
OURS = sa.text("SELECT pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()")
HOLDER = sa.text(
    "SELECT pid, backend_start, host(client_addr) AS address "
    "FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE locktype = 'advisory' AND granted "
    "AND pg_locks.database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
    f"AND classid = 0 AND objid = {NODE_LOCK}"
)

log = get_logger()


class Occupancy:
    """Holds the database for this process; a context manager.

    The lock of a PostgreSQL session ends when the server does. A thread takes it again, and when
    another node was quicker, `lost` says so: this one must end then.
    """

    def __init__(self, database: Database, look_s: float = LOOK_S) -> None:
        self._database = database
        self._look_s = look_s
        self._connection: sa.Connection | None = None
        self._session: tuple[Any, ...] = ()  # process and start of the session that has the lock
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.lost = ""

    def __enter__(self) -> Self:
        """Take the database.

        Raises
        ------
        DatabaseTaken
            If another node has it.
        StoreUnavailable
            If the database does not answer.
        """
        if self._database.is_sqlite:  # a file of the state folder, which has a lock of its own
            return self
        self.look()
        self._thread = threading.Thread(target=self._watch, name="occupancy", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self._unlock()
        self._leave()

    def _watch(self) -> None:
        while not self._stop.wait(self._look_s):
            try:
                self.look()
            except DatabaseTaken as error:
                self.lost = str(error)
                return
            except StoreUnavailable as error:  # the next look finds it there again
                log.warning("database.unwatched", reason=str(error))

    def look(self) -> None:
        """Return when the lock is ours, still or again.

        Raises
        ------
        DatabaseTaken
            If another node has it.
        StoreUnavailable
            If the database does not answer, or has not noticed yet that our last session is gone.
        """
        try:
            if self._connection is None:
                self._take()
            else:
                self._connection.execute(sa.text("SELECT 1"))
        except AWAY as error:
            self._leave()
            raise StoreUnavailable(f"the database did not answer: {error_text(error)}") from error

    def _take(self) -> None:
        engine = self._database.engine.execution_options(isolation_level="AUTOCOMMIT")
        connection = self._connection = engine.connect()
        if connection.scalar(sa.select(sa.func.pg_try_advisory_lock(NODE_LOCK))):
            self._session = tuple(connection.execute(OURS).one())
            return
        holder = connection.execute(HOLDER).first()
        self._leave()
        if holder is None or tuple(holder)[:2] == self._session:
            raise StoreUnavailable("the database is about to let go of our last session")
        raise DatabaseTaken(
            f"another node is running on this database, {described(holder)}; "
            "one database belongs to one node"
        )

    def _unlock(self) -> None:
        """Give the lock back in so many words.

        A server may notice only later that a session was closed: the next node would be refused.
        """
        if self._connection is None:
            return
        try:
            self._connection.execute(sa.select(sa.func.pg_advisory_unlock(NODE_LOCK)))
        except AWAY as error:  # then the lock went with the session
            log.info("database.not_unlocked", reason=error_text(error))

    def _leave(self) -> None:
        """Let go of the session; the server lets go of what it holds."""
        if self._connection is not None:
            self._connection.invalidate()  # not back to the pool: the lock would live on there
            self._connection.close()
            self._connection = None


def described(holder: sa.Row[Any]) -> str:
    """Return from where and since when the other node runs.

    The server hides both of another role's sessions from a role that may not read statistics.
    """
    if holder.backend_start is None:
        return "as another database role"
    since = holder.backend_start.astimezone(UTC)
    return f"from {holder.address or 'this machine'} since {since:%Y-%m-%d %H:%M:%S} UTC"

"""Connection, transactions and migrations: what all parts of the store stand on."""

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar, cast

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError

from dicom_node.errors import SettingsError, StoreUnavailable
from dicom_node.store.chain import Entry, append
from dicom_node.store.engines import make_engine
from dicom_node.store.prepared import OfRows, Values
from dicom_node.telemetry import allowed, get_logger

MIGRATIONS = Path(__file__).parent / "migrations"
MOST_VARIABLES = 500  # of one statement: every database has a limit
MIGRATION_LOCK = 4704  # any number: PostgreSQL advisory lock that lets one process migrate
# Gone, stopping, full, read-only, locked for too long, or a deadlock that we lost.
AWAY = (
    sa.exc.OperationalError,
    sa.exc.InternalError,
    sa.exc.InterfaceError,
    sa.exc.TimeoutError,
)

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class Work:
    """One transaction: its connection, and what the audit trail is to say of it."""

    connection: sa.Connection
    trail: list[Entry] = field(default_factory=list)

    def execute(self, statement: sa.Executable) -> sa.CursorResult[Any]:
        """Return the result of `statement` inside this transaction."""
        return self.connection.execute(statement)

    def record(self, event: str, now: datetime, **fields: Any) -> None:
        """Add an audit row at the end of this transaction, and a log line after its commit."""
        self.trail.append(Entry(at=now, event=event, fields=allowed(fields)))


class Database:
    """An engine with durable write transactions and read transactions that see one moment.

    SQLite lets one transaction write at a time. PostgreSQL lets many, and each locks its rows in
    this order, so that no two wait for each other: series, job, delivery, commitment, audit trail.
    """

    def __init__(self, url: str) -> None:
        """Stand on the database at `url`; the first transaction connects."""
        self.engine = make_engine(url)
        self.is_sqlite = self.engine.dialect.name == "sqlite"
        # SQLite's busy handler sleeps up to 100 ms; inside one process a lock hands over at once.
        self._turn: Any = threading.Lock() if self.is_sqlite else nullcontext()
        self._writer: sa.Connection | None = None  # SQLite's, between transactions

    @contextmanager
    def transaction(self) -> Iterator[Work]:
        """Yield a write transaction; commit, then log what it recorded.

        Raises
        ------
        StoreUnavailable
            If the database is locked, full or gone: nothing of it was kept.
        """
        try:
            with self._turn, self._begin() as connection:
                work = Work(connection=connection)
                yield work
                append(connection, work.trail)
        except AWAY as error:
            raise StoreUnavailable(f"the database did not commit: {error_text(error)}") from error
        for entry in work.trail:
            get_logger().info(entry.event, **entry.fields)

    @contextmanager
    def _begin(self) -> Iterator[sa.Connection]:
        """Yield a connection inside a transaction.

        Whose turn it is on SQLite has the one connection that writes: to fetch one from the pool
        and to give it back takes longer than most transactions. A server may have gone meanwhile,
        and the pool asks it.
        """
        if not self.is_sqlite:
            with self.engine.begin() as connection:
                yield connection
            return
        with self._the_writer() as writer, writer.begin():
            yield writer

    @contextmanager
    def _the_writer(self) -> Iterator[sa.Connection]:
        """Yield SQLite's one connection that writes, to whose turn it is."""
        writer, self._writer = self._writer or self.engine.connect(), None
        try:
            yield writer
            self._writer = writer
        finally:
            if self._writer is None:  # it failed: nobody knows in which state the connection is
                writer.close()

    def run_at_once(
        self, statement: OfRows, rows: Sequence[Values], needs: tuple[str, ...]
    ) -> bool:
        """Return whether a statement about `rows` is done; it is a transaction of its own.

        SQLite only. What was done is durable; where something forbids it, nothing was kept.

        Parameters
        ----------
        needs
            Makes what the statement needs beside the tables, once for a connection.

        Raises
        ------
        StoreUnavailable
            If the database is locked, or there is no connection to it.
        """
        try:
            with self._turn, self._the_writer() as writer:
                driver = cast(sqlite3.Connection, writer.connection.driver_connection)
                if not writer.info.get(needs):
                    for each in needs:
                        driver.execute(each)
                    writer.info[needs] = True
                return obeyed(driver, *statement.for_driver(writer.dialect, rows))
        except sa.exc.TimeoutError as error:
            raise StoreUnavailable(f"the database did not commit: {error_text(error)}") from error
        except (sa.exc.StatementError, sqlite3.Error) as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY:
                raise StoreUnavailable(f"the database did not commit: {error}") from error
            return False

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """Yield a connection that sees one state of the database and never waits for writers."""
        options: dict[str, Any] = {"dicom_node_read": True}
        if not self.is_sqlite:  # else every statement would see another state
            options["isolation_level"] = "REPEATABLE READ"
        try:
            with self.engine.connect().execution_options(**options) as connection:
                yield connection
        except AWAY as error:
            raise StoreUnavailable(f"the database did not answer: {error_text(error)}") from error

    def migrate(self) -> None:
        """Bring the schema to the newest revision; several processes may try at once.

        Raises
        ------
        SettingsError
            If the database belongs to a newer version, or is not made for the node.
        """
        try:
            if self._revision() != ScriptDirectory.from_config(alembic()).get_current_head():
                with self.transaction() as work:
                    self._upgrade(work)
        except sa.exc.ProgrammingError as error:  # PostgreSQL: a right is missing
            raise SettingsError(f"node.database cannot be used: {error_text(error)}") from error

    def warn_of_risks(self) -> None:
        """Log when the server is set up to forget commits in a power cut."""
        if self.is_sqlite:
            return
        risky = "SELECT name FROM pg_settings WHERE name IN ('fsync', 'full_page_writes')"
        with self.reading() as connection:
            names = connection.scalars(sa.text(f"{risky} AND setting = 'off' ORDER BY name")).all()
        for name in names:
            reason = f"PostgreSQL runs with {name} = off: a power cut may lose acknowledged images"
            get_logger().warning("database.not_durable", reason=reason)

    def _upgrade(self, work: Work) -> None:
        if not self.is_sqlite:
            work.execute(sa.select(sa.func.pg_advisory_xact_lock(MIGRATION_LOCK)))
            refuse_other_encoding(work)
        config = alembic()
        config.attributes["connection"] = work.connection
        upgrade(config)

    def _revision(self) -> str | None:
        with self.reading() as connection:
            return MigrationContext.configure(connection).get_current_revision()

    def close(self) -> None:
        """Close every connection."""
        with self._turn:
            if self._writer is not None:
                self._writer.close()
                self._writer = None
        self.engine.dispose()


def obeyed(driver: sqlite3.Connection, statement: str, values: Any) -> bool:
    """Return whether no constraint and no trigger forbade the statement; else nothing was kept.

    Such a refusal undoes the statement and nothing else: the connection is as good as before.
    """
    with suppress(sqlite3.IntegrityError):
        driver.execute(statement, values)
        return True
    return False


def parts(values: Sequence[Value]) -> Iterator[Sequence[Value]]:
    """Yield all values, never too many for one statement."""
    for start in range(0, len(values), MOST_VARIABLES):
        yield values[start : start + MOST_VARIABLES]


def error_text(error: sa.exc.SQLAlchemyError) -> str:
    """Return the driver's words in one line, without the statement and its parameters."""
    words = str(getattr(error, "orig", None) or type(error).__name__)
    return " ".join(words.split())


def alembic() -> Config:
    """Return the configuration that finds our migrations."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    return config


def refuse_other_encoding(work: Work) -> None:
    """Raise SettingsError unless the PostgreSQL database can keep every text."""
    encoding = work.execute(sa.text("SHOW server_encoding")).scalar_one()
    if encoding != "UTF8":
        raise SettingsError(f"node.database must be encoded in UTF8, not {encoding}")


def upgrade(config: Config) -> None:
    """Run the migrations of `config`.

    Raises
    ------
    SettingsError
        If the database was written by a newer version of this program.
    """
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise SettingsError(f"node.database was written by a newer version: {error}") from error

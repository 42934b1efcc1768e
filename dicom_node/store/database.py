"""Connection, transactions and migrations: what all parts of the store stand on."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError

from dicom_node.errors import SettingsError, StoreUnavailable
from dicom_node.store.chain import Entry, append
from dicom_node.telemetry import allowed, get_logger

MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_TIMEOUT_S = 30.0
MIGRATION_LOCK = 4704  # any number: PostgreSQL advisory lock that lets one process migrate


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
    """An engine with durable, serialised write transactions and plain read transactions."""

    def __init__(self, url: str) -> None:
        """Connect to `url`; SQLite gets WAL, synchronous FULL and BEGIN IMMEDIATE."""
        self.engine = make_engine(url)
        self.is_sqlite = self.engine.dialect.name == "sqlite"
        # SQLite's busy handler sleeps up to 100 ms; inside one process a lock hands over at once.
        self._turn: Any = threading.Lock() if self.is_sqlite else nullcontext()

    @contextmanager
    def transaction(self) -> Iterator[Work]:
        """Yield a write transaction; commit, then log what it recorded.

        Raises
        ------
        StoreUnavailable
            If the database is locked, full or gone: nothing of it was kept.
        """
        try:
            with self._turn, self.engine.begin() as connection:
                work = Work(connection=connection)
                yield work
                append(connection, work.trail)
        except (sa.exc.OperationalError, sa.exc.TimeoutError) as error:
            raise StoreUnavailable(f"the database did not commit: {error_text(error)}") from error
        for entry in work.trail:
            get_logger().info(entry.event, **entry.fields)

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """Yield a connection that sees one state of the database and never waits for writers."""
        options: dict[str, Any] = {"dicom_node_read": True}
        if not self.is_sqlite:  # else every statement would see another state
            options["isolation_level"] = "REPEATABLE READ"
        try:
            with self.engine.connect().execution_options(**options) as connection:
                yield connection
        except (sa.exc.OperationalError, sa.exc.TimeoutError) as error:
            raise StoreUnavailable(f"the database did not answer: {error_text(error)}") from error

    def migrate(self) -> None:
        """Bring the schema to the newest revision; several processes may try at once."""
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        if self._revision() == ScriptDirectory.from_config(config).get_current_head():
            return
        with self.transaction() as work:
            if not self.is_sqlite:
                work.execute(sa.select(sa.func.pg_advisory_xact_lock(MIGRATION_LOCK)))
            config.attributes["connection"] = work.connection
            upgrade(config)

    def _revision(self) -> str | None:
        with self.reading() as connection:
            return MigrationContext.configure(connection).get_current_revision()

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()


def error_text(error: sa.exc.SQLAlchemyError) -> str:
    """Return the driver's words without the statement and its parameters."""
    return str(getattr(error, "orig", None) or type(error).__name__)


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


def make_engine(url: str) -> sa.Engine:
    """Return the engine for `url`.

    Raises
    ------
    SettingsError
        If `url` is no database URL, or its driver is not installed.
    """
    try:
        parsed = sa.make_url(url)
        if parsed.get_backend_name() != "sqlite":
            return sa.create_engine(parsed, pool_pre_ping=True)
    except (sa.exc.ArgumentError, sa.exc.NoSuchModuleError, ModuleNotFoundError) as error:
        raise SettingsError(f"node.database cannot be used: {error}") from error
    if not parsed.database or parsed.database == ":memory:":
        raise SettingsError("node.database must name a file: memory does not survive a power cut")
    Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(
        parsed, connect_args={"timeout": BUSY_TIMEOUT_S}, pool_size=8, max_overflow=56
    )
    sa.event.listen(engine, "connect", prepare_sqlite)
    sa.event.listen(engine, "begin", begin_sqlite)
    return engine


def prepare_sqlite(connection: Any, _: Any) -> None:
    """Make a new SQLite connection durable and leave transactions to `begin_sqlite`."""
    connection.isolation_level = None
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")


def begin_sqlite(connection: sa.Connection) -> None:
    """Begin at once as a writer, so that no transaction fails when it first writes."""
    reads = connection.get_execution_options().get("dicom_node_read", False)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

"""The engine of each kind of database: SQLite in a file, PostgreSQL over psycopg.

Both are made so that a commit survives a power cut and nobody waits for ever.
"""

import sqlite3
import time
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from dicom_node.errors import SettingsError
from dicom_node.store.schema import json_text

SQLITE, POSTGRESQL = ("sqlite", "sqlite+pysqlite"), ("postgresql", "postgresql+psycopg")
BUSY_TIMEOUT_S = 30.0
LOCKED_S = 0.02  # until a locked file is tried again
MOST_LOG_BYTES = 2**25  # of write-ahead log that stay on the disk; some thousand images' rows
CONNECTIONS = {"pool_size": 8, "max_overflow": 56}
# PostgreSQL allows 100 connections to begin with, for the node, its workers and everybody else.
CONNECTIONS_OF_SERVER = {"pool_size": 8, "max_overflow": 24, "pool_timeout": BUSY_TIMEOUT_S}
# What libpq is told unless the URL says otherwise: a server that is gone is noticed.
PATIENCE = {
    "connect_timeout": "10",  # seconds
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",  # milliseconds
    "application_name": "dicom-node",
    "client_encoding": "utf8",
}
# Of a session: a stopped process must not block the others, the server must notice when the node's
# machine is gone, and a commit must be on the disk even where the site prefers speed.
SESSION = f"""SELECT
    set_config('lock_timeout', '{BUSY_TIMEOUT_S:.0f}s', false),
    set_config('idle_in_transaction_session_timeout', '60s', false),
    set_config('tcp_keepalives_idle', '30', false),
    set_config('tcp_keepalives_interval', '10', false),
    set_config('tcp_keepalives_count', '3', false),
    set_config('synchronous_commit',
        coalesce(nullif(current_setting('synchronous_commit'), 'off'), 'on'), false)"""
NO_DRIVER = (
    "node.database names PostgreSQL, but its driver is not installed: "
    "pip install 'psycopg[binary]', which the extra dicom-node[postgresql] brings"
)


def parse_url(url: str) -> sa.URL:
    """Return the database URL, its driver spelt out; what is refused is not quoted.

    Raises
    ------
    SettingsError
        If `url` is no URL, or names no database that the node can live in.
    """
    try:
        parsed = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError):
        raise SettingsError(
            "node.database cannot be used: it is no URL like "
            "postgresql+psycopg://user:password@host/name"
        ) from None
    if parsed.drivername in POSTGRESQL:
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername not in SQLITE:
        raise SettingsError(
            f"node.database cannot be used: {parsed.drivername} is neither sqlite "
            "nor postgresql+psycopg"
        )
    if not parsed.database or parsed.database == ":memory:":
        raise SettingsError("node.database must name a file: memory does not survive a power cut")
    return parsed


def check_url(url: str) -> None:
    """Raise SettingsError unless the node could live at `url`; connects to nothing."""
    parsed = parse_url(url)
    if parsed.drivername not in SQLITE:
        postgresql(parsed)


def make_engine(url: str) -> sa.Engine:
    """Return the engine for `url`; nothing is connected yet.

    Raises
    ------
    SettingsError
        If `url` is no database URL, or its driver is not installed.
    """
    parsed = parse_url(url)
    return sqlite(parsed) if parsed.drivername in SQLITE else postgresql(parsed)


def sqlite(url: sa.URL) -> sa.Engine:
    """Return the engine of a SQLite file, whose folder is made."""
    Path(str(url.database)).parent.mkdir(parents=True, exist_ok=True)
    patience = {"timeout": BUSY_TIMEOUT_S}
    engine = sa.create_engine(url, connect_args=patience, json_serializer=json_text, **CONNECTIONS)
    sa.event.listen(engine, "connect", prepare_sqlite)
    sa.event.listen(engine, "begin", begin_sqlite)
    return engine


def prepare_sqlite(connection: Any, _: Any) -> None:
    """Make a new SQLite connection durable and leave transactions to `begin_sqlite`."""
    connection.isolation_level = None
    switch_to_wal(connection)
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")
    # Who reads for minutes (`verify`) keeps everything in the log meanwhile, which stays so long.
    connection.execute(f"PRAGMA journal_size_limit={MOST_LOG_BYTES}")


def switch_to_wal(connection: Any) -> None:
    """Switch a SQLite file to a write-ahead log, which it keeps.

    While another process does the same SQLite may call the file locked without waiting (it would
    have to wait with a lock in its hand), so the waiting is done here.
    """
    until = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() >= until:
                raise
            time.sleep(LOCKED_S)


def begin_sqlite(connection: sa.Connection) -> None:
    """Begin at once as a writer, so that no transaction fails when it first writes."""
    reads = connection.get_execution_options().get("dicom_node_read", False)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


def postgresql(url: sa.URL) -> sa.Engine:
    """Return the engine of a PostgreSQL server; raise SettingsError without its driver."""
    try:
        engine = sa.create_engine(
            url.set(query={**PATIENCE, **url.query}),
            isolation_level="READ COMMITTED",  # after waiting for a lock, see what is there now
            pool_pre_ping=True,  # the server may have been restarted
            json_serializer=json_text,
            **CONNECTIONS_OF_SERVER,
        )
    except ImportError as error:  # no psycopg, or psycopg without libpq
        raise SettingsError(NO_DRIVER) from error
    sa.event.listen(engine, "connect", prepare_postgresql)
    return engine


def prepare_postgresql(connection: Any, _: Any) -> None:
    """Set what `SESSION` says on a new connection."""
    connection.autocommit = True
    connection.execute(SESSION)
    connection.autocommit = False

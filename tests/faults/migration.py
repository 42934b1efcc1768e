"""kill -9 of the service while it makes its database, or brings an older one up to date.

python -m tests.faults.migration --kills 60

Half of the kills hit the first start in an empty folder, half the start on a database of revision
0002 with a long audit trail, which the migration to 0003 links row by row. Between two kills the
database is opened as it lies there: it must be at one revision, whole. The last start finishes the
work, and nothing may be missing.
"""

import argparse
import random
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

from alembic import command
from alembic.config import Config

from dicom_node.store.database import MIGRATIONS, Database
from tests.faults.ledger import Row, main, say
from tests.faults.processes import let_work
from tests.faults.stand import StandNode
from tests.integration.partners import free_port

OLD, TRAIL_ROWS = "0002", 20_000
# Seconds of the processor, not of the clock: so the moment does not hang on who else is busy.
WITHIN_CPU_S = {"first start": 0.25, "older database": 1.0}


def older_database(path: Path, rows: int = TRAIL_ROWS) -> None:
    """Make the database of an older version, with a trail that takes a while to link."""
    path.parent.mkdir(parents=True, exist_ok=True)
    database = Database(f"sqlite:///{path}")
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with database.transaction() as work:
        config.attributes["connection"] = work.connection
        command.upgrade(config, OLD)
    database.close()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executemany(
            "INSERT INTO audit (at, event, fields) VALUES ('2026-01-01 00:00:00.000000', ?, '{}')",
            [(f"test.{number}",) for number in range(rows)],
        )


def look(path: Path, rows: int) -> str:
    """Return what is wrong with a database that nobody has open, or nothing."""
    if not path.is_file():
        return ""
    with closing(sqlite3.connect(path)) as connection:
        (sound,) = connection.execute("PRAGMA integrity_check").fetchone()
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        if "audit" not in tables:
            return "" if sound == "ok" and not tables else f"{sound}, tables {sorted(tables)}"
        (revision,) = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        (kept,) = connection.execute(
            "SELECT count(*) FROM audit WHERE event LIKE 'test.%'"
        ).fetchone()
    new = "audit_head" in tables
    if sound != "ok" or kept != rows or new == (revision <= OLD):
        return f"{sound}, revision {revision}, {kept} of {rows} rows, audit_head is {new}"
    return ""


def campaign(folder: Path, kills: int, seed: int, rows: int = TRAIL_ROWS) -> Row:
    """Kill `kills` starts; return the row."""
    rng = random.Random(seed)
    row = Row(name="migration", unit="kills", details={"not yet migrated after the kill": 0})
    number = 0
    while row.count < kills:
        number += 1
        kind = "older database" if number % 2 else "first start"
        node = StandNode(folder / f"node{number}", port=free_port(), pacs=("PACS", 104))
        trail = rows if kind == "older database" else 0
        if trail:
            older_database(node.database, trail)
        while row.count < kills and not migrated(node.database):
            kill_start(node, rng.uniform(0.0, WITHIN_CPU_S[kind]))
            row.count += 1
            wrong = look(node.database, trail)
            row.account.problems += [f"{kind}: {wrong}"] if wrong else []
            row.details["not yet migrated after the kill"] += not migrated(node.database)
        finish(node, row, trail)
        say(f"{row.count} kills")
    return row


def kill_start(node: StandNode, after_cpu_s: float) -> None:
    """Start the service and kill it when it has worked for so long."""
    node.start(wait=False, workers=False)
    assert node.process is not None
    let_work(node.process.pid, after_cpu_s, 10.0)
    node.process.kill()
    node.process.wait()


def migrated(path: Path) -> bool:
    """Return whether the database is at the newest revision."""
    if not path.is_file():
        return False
    with closing(sqlite3.connect(path)) as connection:
        found = connection.execute(
            "SELECT count(*) FROM sqlite_master WHERE name = 'audit_head'"
        ).fetchone()
    return bool(found[0])


def finish(node: StandNode, row: Row, trail: int) -> None:
    """Let a start come to its end; the trail must be whole and linked."""
    node.start()
    try:
        wrong = look(node.database, trail)
        node.command("verify")
    except AssertionError as error:
        wrong = str(error)
    finally:
        node.stop()
    row.account.problems += [f"after the last start: {wrong}"] if wrong else []


def run(folder: Path, arguments: argparse.Namespace) -> Row:
    """Run what the command line asks for."""
    return campaign(folder, arguments.kills, arguments.seed)


if __name__ == "__main__":
    sys.exit(main("migration", __doc__, run, kills=60))

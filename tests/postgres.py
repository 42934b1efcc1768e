"""A real PostgreSQL for tests: one cluster a test process, on a Unix socket in its own folder."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import psycopg

from dicom_node.store import open_store

DEBIAN = Path("/usr/lib/postgresql")
ROLE = "node"
START_S = 120.0
# Nothing of this cluster outlives the test, so nothing of it needs to survive a power cut.
OPTIONS = {
    "fsync": "off",
    "full_page_writes": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "listen_addresses": "",
    "timezone": "Europe/Berlin",  # not UTC: what the node stores must not depend on it
}

OUR_TABLES = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
REMEMBER = f"""DO $$ DECLARE it text; BEGIN
    CREATE SCHEMA fresh;
    FOR it IN {OUR_TABLES} LOOP
        EXECUTE format('CREATE TABLE fresh.%I AS TABLE public.%I', it, it);
    END LOOP;
END $$"""
RESET = f"""DO $$ DECLARE it text; BEGIN
    SET LOCAL session_replication_role = replica;  -- neither triggers nor foreign keys
    FOR it IN {OUR_TABLES} LOOP
        EXECUTE format('DELETE FROM public.%I', it);
        EXECUTE format('INSERT INTO public.%I SELECT * FROM fresh.%I', it, it);
    END LOOP;
    PERFORM setval(format('public.%I', sequencename), 1, false) FROM pg_sequences;
END $$"""
CUT_OTHERS = """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()"""


def find_program(name: str) -> Path | None:
    """Return a program of the newest PostgreSQL that is installed."""
    versions = [path for path in DEBIAN.glob("*") if (path / "bin" / name).is_file()]
    if versions:
        return max(versions, key=lambda path: float(path.name)) / "bin" / name
    found = shutil.which(name)
    return Path(found) if found else None


class Cluster:
    """A PostgreSQL server with one superuser, `ROLE`, whom it lets in without a password."""

    def __init__(self, folder: Path) -> None:
        """Make a new cluster in `folder`, which must be short: it holds the socket."""
        self.folder = folder
        self._numbers = count(1)
        self._clean: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None
        if os.geteuid() == 0:  # whom PostgreSQL refuses
            shutil.chown(folder, *unprivileged())
        self._run(
            *("initdb", "--pgdata", f"{folder}/data", "--username", ROLE, "--auth", "trust"),
            *("--encoding", "UTF8", "--no-locale", "--no-sync", "--no-instructions"),
        )

    def start(self) -> "Cluster":
        """Start the server, from a thread that lives on: with that, however it ends, it ends."""
        options = [f"-c{name}={value}" for name, value in OPTIONS.items()]
        command = [find_program("postgres"), f"-D{self.folder}/data", f"-k{self.folder}", *options]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*as_unprivileged("--pdeathsig", "QUIT"), *command],
                cwd=self.folder,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + START_S
        while not self._answers():
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise AssertionError((self.folder / "log").read_text())
            time.sleep(0.02)
        return self

    def stop(self, how: int = signal.SIGINT) -> None:
        """Stop the server and cut whoever is connected; with SIGQUIT as a power cut does."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(START_S)

    def url(self, name: str) -> str:
        """Return the URL of a database."""
        return f"postgresql+psycopg://{ROLE}@/{name}?host={self.folder}"

    def execute(self, statement: str) -> None:
        """Run one statement outside of any database of a test."""
        with self._connect() as connection:
            connection.execute(statement)

    @contextmanager
    def database(self) -> Iterator[str]:
        """Yield the URL of a database that holds the node's tables as they are at first.

        Making one costs a hundred times as much as putting it back, so they go round.
        """
        name = self._clean.pop() if self._clean else self._make_database()
        yield self.url(name)
        with self._connect(name) as connection:
            connection.execute(CUT_OTHERS)
            connection.execute(RESET)
        self._clean.append(name)

    @contextmanager
    def empty_database(self) -> Iterator[str]:
        """Yield the URL of a database without any table."""
        name = f"node{next(self._numbers)}"
        with self._connect() as connection:
            connection.execute(f"CREATE DATABASE {name}")
            yield self.url(name)
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def _make_database(self) -> str:
        name = f"node{next(self._numbers)}"
        with self._connect() as connection:
            connection.execute(f"CREATE DATABASE {name}")
        open_store(self.url(name)).close()
        with self._connect(name) as connection:
            connection.execute(REMEMBER)
        return name

    def _connect(self, name: str = "postgres") -> psycopg.Connection:
        return psycopg.connect(host=str(self.folder), user=ROLE, dbname=name, autocommit=True)

    def _answers(self) -> bool:
        try:
            self._connect().close()
        except psycopg.OperationalError:
            return False
        return True

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [*as_unprivileged(), find_program(program), *arguments],
            cwd=self.folder,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr


def unprivileged() -> tuple[int, int]:
    """Return user and group that the server runs as when we are root."""
    for name in ("postgres", "nobody"):
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        return user.pw_uid, user.pw_gid
    raise AssertionError("there is no user that PostgreSQL could run as")


def as_unprivileged(*options: str) -> list[str]:
    """Return the beginning of a command line that runs the rest of it without privileges."""
    if os.geteuid() == 0:
        user, group = unprivileged()
        options = (f"--reuid={user}", f"--regid={group}", "--clear-groups", *options)
    return ["setpriv", *options] if options else []


@contextmanager
def running_cluster() -> Iterator[Cluster]:
    """Yield a cluster; it is gone at the end."""
    # Not in pytest's folder: other users cannot enter that, and its path is too long for a socket.
    with tempfile.TemporaryDirectory(prefix="dicom-node-pg-") as folder:
        cluster = Cluster(Path(folder))
        try:
            yield cluster.start()
        finally:
            cluster.stop(signal.SIGQUIT)

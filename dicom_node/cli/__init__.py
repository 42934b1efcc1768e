"""`dicom-node`: run the node, look at it, and decide what it may not decide itself.

Exit codes: 0 done, 1 refused, 2 usage, 3 internal failure. ``--json`` prints one JSON document on
standard output and nothing else; refusals and failures are one line on standard error.
"""

import argparse
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from dicom_node import telemetry
from dicom_node.cli import (
    access,
    conformance,
    dry_run,
    operations,
    origin,
    processes,
    pull,
    purge,
    recall,
)
from dicom_node.cli.output import one_line
from dicom_node.errors import NodeError
from sr_engine import __version__
from sr_engine.errors import EngineError

DONE, USAGE, FAILED, INTERRUPTED = 0, 2, 3, 130
Arguments = argparse.Namespace
Run = Callable[[Arguments], int | None]


class Parser(argparse.ArgumentParser):
    """argparse's parser, which says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with 2."""
        self.exit(USAGE, f"{self.prog}: {one_line(message)} (see {self.prog} --help)\n")


class LastResort:
    """Turns a failure that nobody expected into one line, a file with the places, and exit 3."""

    def __init__(self, command: str) -> None:
        """Guard `command`."""
        self._command = command

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Exit with 3 when `error` is one of a program, not a request to end."""
        if not isinstance(error, Exception):
            return
        descriptor, name = tempfile.mkstemp(prefix="dicom-node-", suffix=".log")
        with os.fdopen(descriptor, "w") as file:
            telemetry.configure_logging(file)
            telemetry.get_logger().error("cli.failed", exc_info=error)
        print(
            f"dicom-node {self._command}: internal failure ({type(error).__name__}); "
            f"the log is {name}",
            file=sys.stderr,
        )
        raise SystemExit(FAILED)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code."""
    arguments = build_parser().parse_args(argv)
    telemetry.configure_logging(level=arguments.log_level)
    with LastResort(arguments.command):
        try:
            code = arguments.run(arguments) or DONE
            sys.stdout.flush()  # what is still buffered may find no reader either
            return code
        except (NodeError, EngineError) as error:
            print(f"dicom-node {arguments.command}: {one_line(error)}", file=sys.stderr)
            return error.exit_code
        except BrokenPipeError:  # the reader of our output has gone: ``dicom-node jobs | head``
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return DONE
        except KeyboardInterrupt:
            return INTERRUPTED


def build_parser() -> argparse.ArgumentParser:
    """Return the grammar of the command line."""
    parser = Parser(prog="dicom-node", description="A DICOM node that enhances 1.5 T MR series.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, run: Run, text: str, *, log_level: int = logging.CRITICAL) -> Parser:
        command: Parser = commands.add_parser(name, help=text, description=text)
        command.add_argument("--config", type=Path, metavar="FILE", help="default: ./node.toml")
        command.add_argument("--state-dir", type=Path, metavar="DIR", help="over node.state_dir")
        command.set_defaults(run=run, log_level=log_level)
        return command

    add_running(add)
    add_looking(add)
    add_deciding(add)
    add_access(add)
    return parser


def add_running(add: Callable[..., Parser]) -> None:
    """Add the commands that keep running."""
    serve = add("serve", processes.serve, "run the node", log_level=logging.INFO)
    serve.add_argument("--workers", type=natural, default=1, metavar="N", help="default: 1")
    serve.add_argument("--shadow", action="store_true", help="do everything but sending")
    work = add("work", processes.work, "run one worker", log_level=logging.INFO)
    work.add_argument("--device", metavar="auto|cpu|cuda:0", help="over engine.device")
    for command in (serve, work):  # our parent holds our standard input open while it lives
        command.add_argument("--managed", action="store_true", help=argparse.SUPPRESS)
    demo = add("demo", processes.demo, "send one series through a whole node, on this machine")
    demo.add_argument("--series", type=Path, metavar="DIR", help="default: a simulated 1.5 T head")
    demo.add_argument("--out", type=Path, default=Path("demo-out"), metavar="DIR")
    demo.add_argument("--keep-serving", action="store_true", help="until Ctrl-C")


def add_access(add: Callable[..., Parser]) -> None:
    """Add the commands about who may use the page."""
    token = add("token", access.listing, "say who may use the page and REST")
    actions = token.add_subparsers(dest="action", metavar="ACTION", required=True)
    new = actions.add_parser("add", help="print a new token, this once")
    new.add_argument("name", metavar="NAME")
    new.add_argument("--role", choices=access.ROLES, default="viewer", help="default: viewer")
    new.set_defaults(run=access.add)
    listing = actions.add_parser("list", help="list names and roles")
    listing.add_argument("--json", action="store_true", help="print one JSON document")
    gone = actions.add_parser("remove", help="take a token away")
    gone.add_argument("name", metavar="NAME")
    gone.set_defaults(run=access.remove)
    for action in (new, listing, gone):  # options are understood after the action, too
        for option in ("--config", "--state-dir"):
            action.add_argument(option, type=Path, default=argparse.SUPPRESS, metavar="PATH")


def add_looking(add: Callable[..., Parser]) -> None:
    """Add the commands that change nothing."""
    explain = add("explain", dry_run.explain, "say what would become of files, and why")
    explain.add_argument("path", type=Path, nargs="+", metavar="PATH")
    provenance = add("provenance", origin.provenance, "say how a derived instance was made")
    provenance.add_argument("file", type=Path, metavar="FILE")
    provenance.add_argument(
        "--verify", metavar="KEY", help='check the signature: a public key, its file, or "own"'
    )
    add("public-key", origin.show_key, "print the key by which others know what this node signed")
    check = add("check-config", operations.check_config, "say whether a configuration is accepted")
    check.add_argument("file", type=Path, metavar="FILE")
    verify = add("verify", operations.verify, "check the ledger and every stored hash")
    stated = add("conformance", conformance.show, "print the DICOM Conformance Statement")
    stated.add_argument("--json", action="store_true", help="print one JSON document")
    echo = add("echo", operations.echo, "ask a peer for a sign of life (C-ECHO)")
    echo.add_argument("peer", metavar="PEER", help="its name in the configuration")
    for command in (explain, provenance, verify):
        command.add_argument("--json", action="store_true", help="print one JSON document")


def add_deciding(add: Callable[..., Parser]) -> None:
    """Add the commands that change what the node does."""
    jobs = add("jobs", operations.jobs, "list every received series, or decide about one")
    jobs.add_argument("--json", action="store_true", help="print one JSON document")
    jobs.add_argument(
        "--all", action="store_true", help="all that is over, too, not only the newest of it"
    )
    jobs.add_argument("decision", nargs="?", choices=tuple(operations.DECISIONS))
    jobs.add_argument("job", nargs="?", metavar="JOB", help="job number or series UID")
    for name, decision in operations.DECISIONS.items():
        command = add(name, operations.decide, decision.text)
        command.add_argument("job", metavar="JOB", help="job number or series UID")
        command.set_defaults(decision=name)
    submit = add("submit", operations.submit, "import files as if they had been received")
    submit.add_argument("path", type=Path, nargs="+", metavar="PATH")
    add_pull(add)
    clear = add("purge", purge.purge, "delete the files whose time has come, and say why")
    clear.add_argument("--dry-run", action="store_true", help="only say what would go, and why")
    clear.add_argument("--json", action="store_true", help="print one JSON document")
    clear.add_argument(
        "--clock-is-right", action="store_true", help="although the trail ends days before or after"
    )
    back = add("recall", recall.recall, "withdraw every series made with a weight file")
    back.add_argument("--weights", required=True, metavar="SHA", help="SHA-256, or the file itself")
    back.add_argument("--reason", default="", metavar="TEXT", help="what people and archives read")
    back.add_argument("--lift", action="store_true", help="it was a mistake: use them again")
    back.add_argument("--json", action="store_true", help="print one JSON document")
    send = add("send", operations.send, "switch all sending on or off, or say how it stands")
    send.add_argument("value", nargs="?", choices=("on", "off"))


def add_pull(add: Callable[..., Parser]) -> None:
    """Add the command that fetches."""
    command = add("pull", pull.pull, "fetch series from a peer as if it had sent them")
    command.add_argument("--from", dest="source", metavar="PEER", required=True)
    what = command.add_mutually_exclusive_group(required=True)
    what.add_argument("--accession", metavar="A", help="every MR series of an accession number")
    what.add_argument("--series", metavar="UID", help="one series")
    command.add_argument("--study", metavar="UID", help="of --series, where the peer asks for it")
    command.add_argument(
        "--modality", default="MR", metavar="MR|any", help="with --accession; default: MR"
    )
    command.add_argument(
        "--rate", type=per_second, metavar="N", help="images per second, over pull.images_per_s"
    )
    command.add_argument("--json", action="store_true", help="print one JSON document")


def per_second(text: str) -> float:
    """Return `text` as a rate; 0 is no limit."""
    try:
        rate = float(text)
    except ValueError:
        rate = -1.0
    if not 0 <= rate <= 10000:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 to 10000")
    return rate


def natural(text: str) -> int:
    """Return `text` as a number of 0 or more."""
    if not text.isdigit() or int(text) > 64:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 to 64")
    return int(text)

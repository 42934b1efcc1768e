"""`dicom-node token`: who may use the page and REST."""

import argparse
import sys
from datetime import UTC, datetime

from dicom_node.cli.operations import opened
from dicom_node.cli.output import print_json, settings_of, table
from dicom_node.web.tokens import Role, TokenFile

ROLES = tuple(role.name.lower() for role in Role)


def add(arguments: argparse.Namespace) -> None:
    """Print a new token, this once."""
    settings = settings_of(arguments)
    now = datetime.now(UTC)
    tokens = TokenFile(settings.node.state_dir)
    with opened(settings) as store:
        text = tokens.add(arguments.name, Role[arguments.role.upper()], now)
        store.audit.record("token.add", now, name=arguments.name, kind=arguments.role)
    print(text)
    print("keep it now: it is not shown again", file=sys.stderr)


def listing(arguments: argparse.Namespace) -> None:
    """List names and roles; the tokens themselves are not kept."""
    tokens = TokenFile(settings_of(arguments).node.state_dir).listing()
    if arguments.json:
        known = ("name", "role", "created_at")
        print_json([{name: getattr(one, name) for name in known} for one in tokens])
    elif not tokens:
        print("There is no token.")
    else:
        rows = [(one.name, one.role, one.created_at) for one in tokens]
        print(table([("NAME", "ROLE", "CREATED"), *rows]))


def remove(arguments: argparse.Namespace) -> None:
    """Take a token away; whoever uses it is out at once."""
    settings = settings_of(arguments)
    with opened(settings) as store:
        TokenFile(settings.node.state_dir).remove(arguments.name)
        store.audit.record("token.remove", datetime.now(UTC), name=arguments.name)
    print(f"token {arguments.name} is removed")

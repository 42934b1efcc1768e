"""`dicom-node conformance`: the DICOM Conformance Statement of this configuration."""

import argparse

from dicom_node.cli.output import print_json, settings_of


def show(arguments: argparse.Namespace) -> None:
    """Print the statement as Markdown, or its tables as JSON."""
    from dicom_node.conformance import statement, to_json

    settings = settings_of(arguments)
    if arguments.json:
        print_json(to_json(settings))
    else:
        print(statement(settings), end="")

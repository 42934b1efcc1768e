"""The DICOM Conformance Statement (PS3.2), made from the configuration and the tables of the code.

What a scanner's or an archive's engineer reads is what the program does: SOP classes, transfer
syntaxes, statuses and limits stand here because the code that negotiates and answers uses them.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from dicom_node.conformance import services, tables, ways
from dicom_node.conformance.tables import Table
from dicom_node.settings import Settings

__all__ = ["SECTIONS", "Table", "statement", "to_json"]

Section = tuple[str, str, Callable[[Settings], Sequence[Table]]]
# Number and title as in PS3.2 annex A, and what stands below it.
SECTIONS: tuple[Section, ...] = (
    ("1", "Conformance statement overview", tables.overview),
    ("2", "Network: application entities", tables.entities),
    ("3", "Network: SOP classes accepted (SCP)", services.accepted),
    ("4", "Network: transfer syntaxes accepted", services.transfer_syntaxes),
    ("5", "Network: SOP classes proposed (SCU)", services.proposed),
    ("6", "Network: association policies", tables.association_policies),
    ("7", "Network: association rejection", services.rejections),
    ("8", "Status codes returned (SCP)", services.statuses_returned),
    ("9", "Status codes understood (SCU)", services.statuses_understood),
    ("10", "Storage commitment", services.commitment),
    ("11", "Rejection notes (IHE IOCM)", services.iocm),
    ("12", "Query and retrieve (SCU)", ways.retrieval),
    ("13", "MPPS and instance availability notification (SCP)", ways.hints_taken),
    ("14", "Web services (PS3.18)", ways.web_services),
    ("15", "Derived objects: IODs", services.derived_objects),
    ("16", "Configuration of remote application entities", tables.remote_entities),
    ("17", "Support of character sets", tables.character_sets),
    ("18", "Security", tables.security),
)
INTRODUCTION = """\
# DICOM Conformance Statement

Made by `dicom-node conformance` from the configuration and from the tables of the program; for
another configuration run the command again. The structure follows PS3.2 annex A.
"""


def statement(settings: Settings) -> str:
    """Return the statement as Markdown."""
    parts = [INTRODUCTION]
    for number, title, make in SECTIONS:
        parts.append(f"## {number} {title}\n")
        parts += [table.to_markdown() for table in make(settings)]
    return "\n".join(parts)


def to_json(settings: Settings) -> dict[str, list[dict[str, Any]]]:
    """Return the tables as plain JSON, by the titles of their sections."""
    return {title: [asdict(table) for table in make(settings)] for _, title, make in SECTIONS}

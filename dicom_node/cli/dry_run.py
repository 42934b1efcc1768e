"""`dicom-node explain`: what would become of files, decided by the functions of the live node."""

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from dicom_node.assembly import InstanceHeader, Verdict, judge
from dicom_node.cli.operations import files_below
from dicom_node.cli.output import one_line, print_json, settings_of
from dicom_node.content import split_file
from dicom_node.errors import InstanceRejected
from dicom_node.intake import SUBMITTED, Examined, Incoming, examine
from dicom_node.states import JobState, next_state

REFUSED = 1


def explain(arguments: argparse.Namespace) -> int:
    """Say what would become of files, and why; one answer per series."""
    settings = settings_of(arguments)
    refused: list[str] = []
    series: dict[str, list[InstanceHeader]] = defaultdict(list)
    for one in distinct(arguments.path, refused):
        header = InstanceHeader(sop_uid=one.sop_uid, header=one.header)
        series[one.series_uid].append(header)
    answers = [answer(uid, headers, judge(headers, settings)) for uid, headers in series.items()]
    if arguments.json:
        print_json(answers)
    elif answers:
        print("\n\n".join(map(in_words, answers)))
    if refused:
        more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
        print(f"dicom-node explain: would refuse {refused[0]}{more}", file=sys.stderr)
    return REFUSED if refused else 0


def distinct(paths: Iterable[Path], refused: list[str]) -> Iterator[Examined]:
    """Yield each instance once, as the node keeps it; note in `refused` what it would refuse.

    Of an image that comes again in another encoding the pixels are not compared here.
    """
    known: dict[str, str] = {}
    for path in (file for given in paths for file in files_below(given)):
        try:
            one = look_at(path)
        except InstanceRejected as error:
            refused.append(f"{path}: {one_line(error)}")
            continue
        if one.sop_uid not in known:
            known[one.sop_uid] = one.attributes_sha256
            yield one
        elif known[one.sop_uid] != one.attributes_sha256:
            refused.append(f"{path}: SOP instance {one.sop_uid} is known with other attributes")


def look_at(path: Path) -> Examined:
    """Return the instance in a file, examined as if it arrived; raise InstanceRejected."""
    transfer_syntax, encoded = split_file(path)
    return examine(Incoming(encoded=encoded, transfer_syntax=transfer_syntax, calling_ae=SUBMITTED))


def answer(uid: str, headers: Sequence[InstanceHeader], verdict: Verdict) -> dict[str, Any]:
    """Return the verdict on one series as plain JSON."""
    first = headers[0].header
    return {
        "series_uid": uid,
        "modality": first.get("Modality", ""),
        "description": first.get("SeriesDescription", ""),
        "instances": len({one.sop_uid for one in headers}),
        "decision": verdict.decision.action,
        "state": next_state(JobState.RECEIVING, verdict.event).value,
        "rule": verdict.decision.rule,
        "reason": verdict.reason,
        "complete": verdict.geometry.complete,
        "missing_mm": list(verdict.geometry.missing_mm),
        "destinations": list(verdict.destinations),
        "priority": verdict.decision.priority,
    }


def in_words(told: dict[str, Any]) -> str:
    """Return one answer as lines for a person."""
    rule = told["rule"] or "none of the configuration"
    return "\n".join(
        [
            f"series    {told['series_uid']} ({told['modality']}, {told['instances']} instances)",
            f"decision  {told['decision']}; the job would be {told['state']}",
            f"rule      {rule}",
            f"reason    {told['reason']}",
            f"to        {', '.join(told['destinations']) or 'nobody'}",
        ]
    )

"""docs/reliability.md: the last campaign as tables and prose, written from its ledger.

python -m tests.faults.report

The ledger is docs/reliability.json; `python -m tests.faults` writes both.
"""

import json
import sys
from collections.abc import Iterable
from typing import Any

from tests.faults.families import FAMILIES, Family
from tests.faults.ledger import ROOT

LEDGER, PAGE = ROOT / "docs" / "reliability.json", ROOT / "docs" / "reliability.md"
HEAD = """# Reliability

What was done to the node, how often, and what was lost. `make faults` repeats all of it
(`make faults SCALE=0.05` a twentieth); it writes this page and [its ledger](reliability.json).

After every campaign each acknowledged instance is looked for: is it on record, is its file the one
that was sent (SHA-256 of the data set), does `dicom-node verify` find ledger, audit trail and
stored hashes in order, is every series at the archive once, whole and equal, and has
every job come to its end. A broken promise of any kind is a *violation*.

"""
COLUMNS = ("lost", "unequal", "duplicate_series", "incomplete_at_pacs", "stuck")
TITLES = ("lost", "not equal", "twice at the archive", "not whole there", "stuck")


def main() -> int:
    """Write the page again from the ledger."""
    PAGE.write_text(render(json.loads(LEDGER.read_text())))
    return 0


def normal(document: dict[str, Any]) -> dict[str, Any]:
    """Return one module's document with the keys of a row, whatever it calls them."""
    if "rows" not in document:
        return document
    rows = document["rows"]
    return document | {
        "count": rows[0]["count"],
        "violations": sum(row["violations"] for row in rows),
        "seconds": document["details"]["seconds"],
        "unit": "exchanges",
    }


def render(ledger: dict[str, Any]) -> str:
    """Return the page."""
    rows = {name: normal(document) for name, document in ledger.items()}
    done = [(family, rows[family.name]) for family in FAMILIES if family.name in rows]
    parts = [HEAD, table_of_rows(done), *(section(family, row) for family, row in done)]
    missing = [family.title for family in FAMILIES if family.name not in rows]
    if missing:
        parts.append(f"Not part of the last run: {', '.join(missing)}.\n\n")
    parts += [
        "## The short versions in `make test`\n\n",
        table_of_tests(family for family, _ in done),
    ]
    return "".join(parts)


def table(head: Iterable[str], lines: Iterable[Iterable[Any]]) -> str:
    """Return a table in Markdown."""
    head = list(head)
    rows = [head, ["---"] * len(head), *lines]
    return "".join(f"| {' | '.join(map(str, row))} |\n" for row in rows) + "\n"


def table_of_rows(done: list[tuple[Family, dict[str, Any]]]) -> str:
    """Return the table of all families: how often, what was found, how long it took."""
    head = ("fault", "how often", "acknowledged instances", *TITLES, "violations", "seconds")
    lines = []
    for family, row in done:
        account = row.get("account")
        figures = [account["instances"], *(account[name] for name in COLUMNS)] if account else None
        lines.append(
            [
                f"[{family.title}](#{anchor(family.title)})",
                f"{row['count']:,} {row['unit']}",
                *(figures or ["-"] * (len(COLUMNS) + 1)),
                row["violations"],
                f"{row['seconds']:,.0f}",
            ]
        )
    return table(head, lines)


def section(family: Family, row: dict[str, Any]) -> str:
    """Return what one family does, its command, and what it found besides."""
    text = f"## {family.title[0].upper()}{family.title[1:]}\n\n{family.what}\n\n"
    text += f"*What it cannot show:* {family.cannot}\n\n"
    text += f"`{row['command']}` at commit {row['commit']}"
    text += f" on {row['date']}.\n\n" if "date" in row else ".\n\n"
    problems = row.get("account", {}).get("problems", [])
    text += "".join(f"- **violation**: {problem}\n" for problem in problems[:20])
    text += "\n" if problems else ""
    return text + (DETAILS[family.name](row) if family.name in DETAILS else plain(row))


def plain(row: dict[str, Any]) -> str:
    """Return the details of a row as a list."""
    details = row.get("details", {})
    lines = [f"- {name}: {spelled(value)}\n" for name, value in details.items()]
    return "".join(lines) + ("\n" if lines else "")


def spelled(value: Any) -> str:
    """Return a value as prose: dictionaries as ``this 3, that 4``."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {spelled(one)}" for name, one in value.items()) or "none"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def kills(row: dict[str, Any]) -> str:
    """Return the kills by process and state."""
    by_process = row["details"]["kills"]
    states = sorted({state for states in by_process.values() for state in states}, key=order)
    lines = [
        [process, *(found.get(state, 0) for state in states), sum(found.values())]
        for process, found in by_process.items()
    ]
    cold = row["details"]["of which started from a shell"]
    text = table(("process", *states, "in all"), lines)
    return text + f"{cold} of them hit the node that was started from a shell.\n\n"


def order(state: str) -> int:
    """Return the place of a state in a series' life."""
    from tests.faults.kill9 import START
    from tests.faults.stand import COMMITTING, SENDING

    places = ("RECEIVING", "QUEUED", "RUNNING", SENDING, COMMITTING, "ended", START)
    return places.index(state) if state in places else len(places)


def connections(row: dict[str, Any]) -> str:
    """Return the figures of the flood."""
    names = ("sends", "slowest_send_s", "rss_before_mb", "rss_peak_mb", "rss_after_mb")
    return plain({"details": {name: row["details"][name] for name in names}})


def fuzz(row: dict[str, Any]) -> str:
    """Return the fuzzer's own table."""
    lines = [(one["what"], f"{one['count']:,}", one["violations"]) for one in row["rows"]]
    return table(("promise", "tried", "violations"), lines)


DETAILS = {"kill9": kills, "connections": connections, "fuzz": fuzz}


def table_of_tests(families: Iterable[Family]) -> str:
    """Return which tests are the short version of a family."""
    lines = []
    for family in families:
        for name in family.short:
            file, _, function = name.partition("::")
            lines.append((family.title, f"[{function}](../{file})"))
    return table(("fault", "test"), lines)


def anchor(title: str) -> str:
    """Return the link target of a heading."""
    kept = "".join(c for c in title.lower() if c.isalnum() or c in " -")
    return kept.replace(" ", "-")


if __name__ == "__main__":
    sys.exit(main())

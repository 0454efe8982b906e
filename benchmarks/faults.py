"""Injects every fault of docs/reliability.md and writes what came of it.

    python -m benchmarks.faults [--only WORD] [--output benchmarks/results/faults.json]
    python -m benchmarks.faults --table     (only write the table of the page from the JSON)

Each fault is injected by a test, which records the message that the user sees, the seconds from the
fault to the message, and the steps that have to be done again. ``--only``: faults whose name or
test holds the word; the others keep what was measured before.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.environment import describe_environment, write_json
from benchmarks.fault_list import FAULTS, Fault
from lightning_gradsched.files import written_whole

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "faults.json"
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- begin: faults -->", "<!-- end: faults -->"
MOST_CHARACTERS = 280


def measure(faults: Sequence[Fault]) -> dict[str, dict[str, Any]]:
    """By test: the message, seconds and lost steps of the slowest measurement that it recorded."""
    with tempfile.TemporaryDirectory() as folder:
        lines = Path(folder) / "measured.jsonl"
        env = {**os.environ, "GRADSCHED_FAULTS": str(lines)}
        tests = [fault.test for fault in faults]
        command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.measured", *tests]
        lines.touch()
        subprocess.run(command, env=env, cwd=ROOT, check=False)  # what failed is told below
        rows = [json.loads(line) for line in lines.read_text().splitlines()]
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        before = found.get(row["test"])
        if before is None or row["seconds"] > before["seconds"]:
            found[row["test"]] = row
    return found


def result(fault: Fault, measured: dict[str, Any]) -> dict[str, Any]:
    return {
        "fault": fault.name,
        "message": shown(measured["message"]),
        "seconds": round(measured["seconds"], 2),
        "lost_steps": measured["lost_steps"],
        "saves": fault.saves,
        "test": fault.test,
    }


def shown(message: str) -> str:
    """One line, without what is of one machine or run.

    >>> shown("cannot read /tmp/a/b/last.ckpt: [rank1]: 3 bytes\\n  and more")
    'cannot read last.ckpt: [rank1]: 3 bytes and more'
    """
    line = re.sub(r"(?<![\w.:])/[\w./\-\[\]]*/(?=[\w.\-]+)", "", " ".join(message.split()))
    if len(line) <= MOST_CHARACTERS:
        return line
    return line[:MOST_CHARACTERS].rsplit(" ", 1)[0] + " …"


def table(results: Sequence[dict[str, Any]]) -> str:
    """The page's table, in Markdown."""
    rows = [
        "| fault | what the user sees | seconds to it | steps lost | test |",
        "| " + "--- | " * 5,
    ]
    for row in results:
        message = row["message"].replace("|", "\\|").replace("`", "'")
        file, _, test = row["test"].partition("::")
        name = test.partition("[")[0]
        lost = str(row["lost_steps"]) if row["saves"] or not row["lost_steps"] else "all"
        cells = (
            row["fault"],
            f"`{message}`",
            f"{row['seconds']:.1f}",
            lost,
            f"[{name}](../{file})",
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(row.rstrip() for row in rows)


def write_page(results: Sequence[dict[str, Any]]) -> None:
    text = PAGE.read_text()
    head, _, rest = text.partition(BEGIN)
    tail = rest.partition(END)[2]
    with written_whole(PAGE) as fresh:
        fresh.write_text(f"{head}{BEGIN}\n{table(results)}\n{END}{tail}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", metavar="WORD")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    old = json.loads(options.output.read_text())["faults"] if options.output.exists() else []
    known = {row["test"]: row for row in old}
    if not options.table:
        chosen = [f for f in FAULTS if options.only is None or options.only in f.name + f.test]
        measured = measure(chosen)
        known |= {f.test: result(f, measured[f.test]) for f in chosen if f.test in measured}
        rows = [known[f.test] for f in FAULTS if f.test in known]
        write_json(options.output, {"environment": describe_environment(), "faults": rows})
    missing = [fault.test for fault in FAULTS if fault.test not in known]
    if missing:
        raise SystemExit(f"nothing is measured of {missing}: see pytest's report above")
    write_page([known[fault.test] for fault in FAULTS])


if __name__ == "__main__":
    main()

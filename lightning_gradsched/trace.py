"""Writes what was measured where the user asked for it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from lightning_gradsched.errors import GradSchedError
from lightning_gradsched.runtime.scheduler import GradientScheduler


def write_trace(scheduler: GradientScheduler, path: Path) -> None:
    """Write the last recorded step as a Chrome trace to ``path`` and print the overlap report."""
    try:
        report = scheduler.report()
    except GradSchedError as error:
        print(f"gradsched: no trace written: {error}", file=sys.stderr)
        return
    trace = scheduler.timelines()[-1].to_chrome_trace()
    trace["otherData"] = {"report": report.to_dict(), "schedule": str(scheduler.schedule)}
    path.parent.mkdir(parents=True, exist_ok=True)
    # Beside it first: a reader never meets half a file.
    partial = path.with_suffix(f"{path.suffix}.partial")
    partial.write_text(json.dumps(trace))
    os.replace(partial, path)
    print(
        f"gradsched: {report}\ngradsched: trace in {path} (open it at ui.perfetto.dev)", flush=True
    )

"""The trace file: what was measured, where the user asked for it, and read back without torch."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_gradsched.core.report import GroupInfo, OverlapReport
from lightning_gradsched.core.timeline import TRACKS, Span, Timeline
from lightning_gradsched.errors import GradSchedError
from lightning_gradsched.files import written_whole

if TYPE_CHECKING:
    from lightning_gradsched.runtime.scheduler import GradientScheduler

# Of what stands under "gradsched" in the file; a change that old readers misread raises it.
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Trace:
    """The measured steps of one plan, at least one; ``groups`` in launch order.

    ``predicted``: the same step as it was simulated, where it was.
    """

    groups: tuple[GroupInfo, ...]
    timelines: tuple[Timeline, ...]
    schedule: str
    predicted: Timeline | None = None

    @property
    def report(self) -> OverlapReport:
        return OverlapReport.of(self.timelines, self.groups)

    @property
    def typical(self) -> Timeline:
        """The step whose rows the report shows."""
        rows = self.report.rows
        return next(t for t in self.timelines if OverlapReport.of([t], self.groups).rows == rows)

    def to_json(self) -> dict[str, Any]:
        """A Chrome trace of the typical step; under ``otherData`` every step, to the last bit."""
        return {
            **self.typical.to_chrome_trace(),
            "otherData": {
                "report": self.report.to_dict(),
                "schedule": self.schedule,
                "gradsched": {
                    "format": FORMAT,
                    "groups": self.groups,
                    "timelines": [timeline.spans for timeline in self.timelines],
                    "predicted": self.predicted.spans if self.predicted else None,
                },
            },
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Trace:
        """Undo ``to_json``. Raises ``LookupError``, ``TypeError`` or ``ValueError`` on others."""
        other = content["otherData"]
        own = other["gradsched"]
        if own["format"] != FORMAT:
            raise ValueError(f"format {own['format']!r} instead of {FORMAT}")
        trace = cls(
            tuple(GroupInfo(label, tuple(names), nbytes) for label, names, nbytes in own["groups"]),
            tuple(map(_timeline, own["timelines"])),
            other["schedule"],
            _timeline(own["predicted"]) if own["predicted"] else None,
        )
        # A span too few shows only here.
        _ = trace.report
        return trace


def _timeline(spans: Iterable[Any]) -> Timeline:
    return Timeline(tuple(_span(*fields) for fields in spans))


def _span(track: str, label: str, start_s: float, end_s: float) -> Span:
    if track not in TRACKS or not (math.isfinite(start_s) and math.isfinite(end_s)):
        raise ValueError(f"impossible span {(track, label, start_s, end_s)}")
    return Span(track, label, start_s, end_s)


def write_trace(
    scheduler: GradientScheduler, path: Path, *, predicted: Timeline | None = None
) -> None:
    """Write the recorded steps as a Chrome trace to ``path`` and print the overlap report."""
    try:
        report = scheduler.report()
    except GradSchedError as error:
        print(f"gradsched: no trace written: {error}", file=sys.stderr)
        return
    groups = tuple(GroupInfo(row.label, row.names, row.nbytes) for row in report.rows)
    trace = Trace(groups, tuple(scheduler.timelines()), str(scheduler.schedule), predicted)
    with written_whole(path) as fresh:
        fresh.write_text(json.dumps(trace.to_json()), encoding="utf-8")
    print(
        f"gradsched: {report}\n"
        f"gradsched: trace in {path} (open it at ui.perfetto.dev, or: gradsched report {path})",
        flush=True,
    )


def read_trace(path: Path) -> Trace:
    """Read what ``write_trace`` wrote.

    Raises:
        GradSchedError: no such file, half of one, or another kind of file.
    """
    try:
        return Trace.from_json(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        got = error.strerror or str(error)
    except json.JSONDecodeError as error:
        got = f"no whole JSON ({error})"
    except (LookupError, TypeError, ValueError) as error:
        got = f"something else ({type(error).__name__}: {error})"
    raise GradSchedError(
        f"{path}: expected a trace of this version of lightning-gradsched, got {got}. Write one by"
        " training with Trainer(strategy=GradSchedStrategy(trace_path='trace.json')), then give"
        " its path."
    )

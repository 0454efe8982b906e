"""The trace file: what was measured, where the user asked for it, and read back without torch."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_gradsched.core.bound import Bounds
from lightning_gradsched.core.report import (
    GroupInfo,
    GroupRow,
    OverlapReport,
    Prediction,
    TriedPlan,
    typical_step,
)
from lightning_gradsched.core.timeline import TRACKS, Span, Timeline
from lightning_gradsched.errors import GradSchedError
from lightning_gradsched.files import written_whole

if TYPE_CHECKING:
    from lightning_gradsched.runtime.scheduler import GradientScheduler

# Of what stands under "gradsched" in the file; a change that old readers misread raises it.
FORMAT = 2
# Held no prediction, no comparison of the ranks and no tried plans in its report.
FIRST_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Trace:
    """The report on the measured steps of one plan, and these steps, at least one.

    ``predicted``: the same step as it was simulated, where it was.
    """

    report: OverlapReport
    timelines: tuple[Timeline, ...]
    schedule: str
    predicted: Timeline | None = None

    @property
    def typical(self) -> Timeline:
        """The step whose rows the report shows."""
        return self.timelines[typical_step(self.timelines)]

    def to_json(self) -> dict[str, Any]:
        """A Chrome trace of the typical step; under ``otherData`` every step, to the last bit."""
        return {
            **self.typical.to_chrome_trace(),
            "otherData": {
                "report": self.report.to_dict(),
                "schedule": self.schedule,
                "gradsched": {
                    "format": FORMAT,
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
        if own["format"] not in (FORMAT, FIRST_FORMAT):
            raise ValueError(f"format {own['format']!r} instead of {FORMAT} or {FIRST_FORMAT}")
        timelines = tuple(map(_timeline, own["timelines"]))
        predicted = _timeline(own["predicted"]) if own["predicted"] else None
        report = None if own["format"] == FIRST_FORMAT else _report(other["report"])
        groups = [_group(*group) for group in own["groups"]] if report is None else report.groups
        # A span too few shows only here.
        summed_up = OverlapReport.of(timelines, groups, predicted=predicted)
        return cls(report or summed_up, timelines, str(other["schedule"]), predicted)


def _timeline(spans: Iterable[Any]) -> Timeline:
    return Timeline(tuple(_span(*fields) for fields in spans))


def _span(track: str, label: str, start_s: float, end_s: float) -> Span:
    if track not in TRACKS or not (math.isfinite(start_s) and math.isfinite(end_s)):
        raise ValueError(f"impossible span {(track, label, start_s, end_s)}")
    return Span(track, label, start_s, end_s)


def _group(label: str, names: Iterable[str], nbytes: int) -> GroupInfo:
    return GroupInfo(str(label), tuple(map(str, names)), int(nbytes))


def _report(fields: Mapping[str, Any]) -> OverlapReport:
    predicted = fields["predicted"]
    least = fields.get("bounds")  # later than the format
    return OverlapReport(
        n_steps=int(fields["n_steps"]),
        **_numbers(fields, "step_s", "compute_s", "comm_s", "exposed_s"),
        rows=tuple(map(_row, fields["rows"])),
        predicted=Prediction(**_numbers(predicted, *Prediction._fields)) if predicted else None,
        tried=tuple(map(_tried, fields["tried"])),
        bounds=Bounds(**_numbers(least, *Bounds._fields)) if least else None,
    )


def _row(fields: Mapping[str, Any]) -> GroupRow:
    waited_for = fields["waited_for"]
    # Of a plan that has changed since, nothing is predicted.
    expected = [n for n in ("predicted_finish_s", "predicted_exposed_s") if fields[n] is not None]
    times = ("ready_s", "launch_s", "finish_s", "exposed_s", "waited_s")
    return GroupRow(
        *_group(fields["label"], fields["names"], fields["nbytes"]),
        **_numbers(fields, *times, *expected),
        reason=str(fields["reason"]),
        waited_for=None if waited_for is None else int(waited_for),
    )


def _tried(fields: Mapping[str, Any]) -> TriedPlan:
    return TriedPlan(
        planner=str(fields["planner"]),
        n_groups=int(fields["n_groups"]),
        **_numbers(fields, "predicted_exposed_s", "step_s"),
        kept=bool(fields["kept"]),
    )


def _numbers(fields: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """These fields; anything but finite numbers is refused."""
    for name in names:
        if not math.isfinite(fields[name]):
            raise ValueError(f"impossible {name} {fields[name]}")
    return {name: fields[name] for name in names}


def write_trace(scheduler: GradientScheduler, path: Path, *, is_writer: bool = True) -> None:
    """Write the recorded steps as a Chrome trace to ``path`` and print the overlap report.

    Collective: all ranks call it, before ``detach``, for the report compares them; those that are
    not ``is_writer`` write and print nothing.
    """
    try:
        report = scheduler.report(across_ranks=True)
    except GradSchedError as error:
        if is_writer:
            print(f"gradsched: no trace written: {error}", file=sys.stderr)
        return
    if not is_writer:
        return
    timelines = tuple(scheduler.timelines())
    # Of another plan than the recorded steps', it would be no prediction of them.
    predicted = scheduler.predicted if report.predicted else None
    trace = Trace(report, timelines, str(scheduler.schedule), predicted)
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
    except (AttributeError, LookupError, OverflowError, TypeError, ValueError) as error:
        got = f"something else ({type(error).__name__}: {error})"
    raise GradSchedError(
        f"{path}: expected a trace of this version of lightning-gradsched, got {got}. Write one by"
        " training with Trainer(strategy=GradSchedStrategy(trace_path='trace.json')), then give"
        " its path."
    )

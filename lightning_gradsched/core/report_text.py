"""An overlap report as lines of text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_gradsched.core.bound import Bounds
    from lightning_gradsched.core.report import GroupRow, OverlapReport, Prediction, TriedPlan


def text_of(report: OverlapReport) -> str:
    """The sums, what was predicted for them, a row a group, and a row a tried plan."""
    has_prediction = report.predicted is not None
    lines = [_head(report)]
    if report.predicted is not None:
        lines.append(_predicted(report.predicted))
    if report.bounds is not None:
        lines.append(_bounds(report.step_s, report.bounds))
    lines.append(_header(has_prediction))
    lines.extend(_line(row, has_prediction) for row in report.rows)
    lines.extend(tried_lines(report.tried))
    return "\n".join(lines)


def _head(report: OverlapReport) -> str:
    return (
        f"step {report.step_s * 1e3:.1f} ms = compute {report.compute_s * 1e3:.1f}"
        f" + exposed communication {report.exposed_s * 1e3:.1f}"
        f"   (communication {report.comm_s * 1e3:.1f} ms, {report.overlap:.0%} hidden;"
        f" median of {report.n_steps} recorded steps)"
    )


def _predicted(predicted: Prediction) -> str:
    compute_s = predicted.step_s - predicted.exposed_s
    return (
        f"predicted {predicted.step_s * 1e3:.1f} ms = forward and backward {compute_s * 1e3:.1f}"
        f" + exposed communication {predicted.exposed_s * 1e3:.1f}"
        f"   (communication {predicted.comm_s * 1e3:.1f} ms)"
    )


def _bounds(step_s: float, bounds: Bounds) -> str:
    return (
        f"no forward and backward take less than {bounds.step_s * 1e3:.1f} ms (this step:"
        f" x {step_s / bounds.step_s:.2f}), nor, where reductions end with backward, than"
        f" {bounds.backward_s * 1e3:.1f} ms (x {step_s / bounds.backward_s:.2f})"
    )


def _header(has_prediction: bool) -> str:
    finish, exposed = "finish ms", "exposed ms"
    if has_prediction:
        finish, exposed = f"{finish}  predicted", f"{exposed}  predicted"
    return f"group  params        KiB  ready ms  launch ms  {finish}  {exposed}  why"


def _line(row: GroupRow, has_prediction: bool) -> str:
    finish, exposed = f"{row.finish_s * 1e3:>9.2f}", f"{row.exposed_s * 1e3:>10.2f}"
    if has_prediction:
        finish = f"{finish}  {_ms(row.predicted_finish_s):>9}"
        exposed = f"{exposed}  {_ms(row.predicted_exposed_s):>9}"
    return (
        f"{row.label:>5}  {len(row.names):>6}  {row.nbytes / 1024:>9.1f}  {row.ready_s * 1e3:>8.2f}"
        f"  {row.launch_s * 1e3:>9.2f}  {finish}  {exposed}  {row.why}"
    )


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.2f}"


def tried_lines(tried: Sequence[TriedPlan]) -> Iterator[str]:
    """A table of the plans that were tried on the job; nothing where there were none."""
    if not tried:
        return
    width = max(len("tried plan"), *(len(plan.planner) for plan in tried))
    yield f"{'tried plan':<{width}}  groups  predicted exposed ms  step ms"
    for plan in tried:
        yield (
            f"{plan.planner:<{width}}  {plan.n_groups:>6}"
            f"  {plan.predicted_exposed_s * 1e3:>20.2f}  {plan.step_s * 1e3:>7.2f}"
            f"{'  kept' if plan.kept else ''}"
        )

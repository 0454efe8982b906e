"""The picture of `gradsched scale`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import floor
from pathlib import Path
from textwrap import fill
from typing import Any

from lightning_gradsched.core.published import Point
from lightning_gradsched.core.scale import ScalePoint
from lightning_gradsched.errors import GradSchedError
from lightning_gradsched.files import written_whole

# Okabe and Ito's colours, told apart by everyone; dashes where curves lie on each other.
STYLES: dict[str, dict[str, Any]] = {
    "none": {"label": "none (gradsched)", "color": "#009E73", "linewidth": 3.5},
    "bits": {"label": "bits (Laanait 2019)", "color": "#0072B2", "linestyle": (0, (5, 2))},
    "tree": {"label": "tree (Kurth 2018)", "color": "#E69F00", "linestyle": (0, (1, 1.5))},
    "coordinator": {"label": "coordinator (Horovod)", "color": "#D55E00"},
    "backward": {"label": "end of backward", "color": "#D55E00"},
    "overlap_forward": {"label": "overlap_forward", "color": "#0072B2", "linestyle": (0, (5, 2))},
    "gradient_lag": {"label": "gradient_lag", "color": "#009E73", "linewidth": 3.5},
    "shard_optimizer": {
        "label": "shard_optimizer",
        "color": "#E69F00",
        "linestyle": (0, (1, 1.5)),
    },
}


def draw(title: str, points: Sequence[ScalePoint], published: Sequence[Point], path: Path) -> None:
    """Efficiency over ranks, and control work beside the step in which it has to hide.

    Of several modes, efficiency alone, under the first control plane.

    Raises:
        GradSchedError: matplotlib is not installed.
    """
    try:
        # Not pyplot: no window system, no global state.
        from matplotlib.figure import Figure
    except ImportError as error:
        raise GradSchedError("--png needs matplotlib: pip install matplotlib") from error
    several_modes = len({point.mode for point in points}) > 1
    if several_modes:
        points = [point for point in points if point.control == points[0].control]
        title += f", control plane {points[0].control!r}"
    has_control = not several_modes and any(point.control_s > 0 for point in points)
    figure = Figure(figsize=(11 if has_control else 7, 4.6), dpi=150, layout="constrained")
    axes = figure.subplots(1, 2 if has_control else 1, squeeze=False)[0]
    figure.suptitle(fill(title, 110 if has_control else 70), fontsize="medium")
    _efficiency(axes[0], points, published)
    if has_control:
        _control_work(axes[1], points)
    with written_whole(path) as fresh:
        figure.savefig(fresh, format="png")


def _efficiency(axes: Any, points: Sequence[ScalePoint], published: Sequence[Point]) -> None:
    for control, ranks, mine in _curves(points):
        axes.plot(ranks, [point.efficiency for point in mine], **_style(control))
    shown = [p for p in published if points[0].n_ranks <= p.n_ranks <= points[-1].n_ranks]
    if shown:
        x, y = [p.n_ranks for p in shown], [p.efficiency for p in shown]
        axes.plot(x, y, "k*", markersize=9, label=f"published: {shown[0].source}", zorder=5)
    by = "mode" if len({point.mode for point in points}) > 1 else "control plane"
    _label(axes, "scaling efficiency", f"Efficiency by {by}", "lower left")
    heights = [*(point.efficiency for point in points), *(point.efficiency for point in shown)]
    axes.set_ylim(max(0.0, floor(10 * min(heights) - 1) / 10), max(1.02, max(heights) + 0.02))


def _control_work(axes: Any, points: Sequence[ScalePoint]) -> None:
    """Work above the line cannot hide behind the computation."""
    for control, ranks, mine in _curves(points):
        if any(point.control_s > 0 for point in mine):
            axes.plot(ranks, [point.control_s * 1e3 for point in mine], **_style(control))
    compute_ms = points[0].compute_s * 1e3
    axes.axhline(compute_ms, color="0.4", linewidth=1, label="compute of one step")
    _label(axes, "milliseconds a step", "Control work of the busiest rank", "upper left")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")


def _curves(points: Sequence[ScalePoint]) -> Iterator[tuple[str, list[int], list[ScalePoint]]]:
    """By control plane, or by mode where there are several."""
    several_modes = len({point.mode for point in points}) > 1
    curves: dict[str, list[ScalePoint]] = {}
    for point in points:
        curves.setdefault(point.mode if several_modes else point.control, []).append(point)
    for name, mine in curves.items():
        yield name, [point.n_ranks for point in mine], mine


def _style(control: str) -> dict[str, Any]:
    return {"marker": "o", "markersize": 3, **STYLES[control]}


def _label(axes: Any, y: str, title: str, legend_at: str) -> None:
    axes.set(xscale="log", xlabel="ranks", ylabel=y)
    axes.set_title(title, fontsize="medium")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.grid(alpha=0.25)
    axes.legend(fontsize="small", loc=legend_at)

"""The picture of `gradsched scale`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import floor
from pathlib import Path
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
}


def draw(title: str, points: Sequence[ScalePoint], published: Sequence[Point], path: Path) -> None:
    """Efficiency over ranks, and control work beside the step in which it has to hide.

    Raises:
        GradSchedError: matplotlib is not installed.
    """
    try:
        # Not pyplot: no window system, no global state.
        from matplotlib.figure import Figure
    except ImportError as error:
        raise GradSchedError("--png needs matplotlib: pip install matplotlib") from error
    has_control = any(point.control_s > 0 for point in points)
    figure = Figure(figsize=(11 if has_control else 6, 4.6), dpi=150, layout="constrained")
    axes = figure.subplots(1, 2 if has_control else 1, squeeze=False)[0]
    figure.suptitle(title, fontsize="medium")
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
    _label(axes, "scaling efficiency", "Efficiency by control plane", "lower left")
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
    for control in dict.fromkeys(point.control for point in points):
        mine = [point for point in points if point.control == control]
        yield control, [point.n_ranks for point in mine], mine


def _style(control: str) -> dict[str, Any]:
    return {"marker": "o", "markersize": 3, **STYLES[control]}


def _label(axes: Any, y: str, title: str, legend_at: str) -> None:
    axes.set(xscale="log", xlabel="ranks", ylabel=y)
    axes.set_title(title, fontsize="medium")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.grid(alpha=0.25)
    axes.legend(fontsize="small", loc=legend_at)

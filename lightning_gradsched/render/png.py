"""The timeline as a PNG, by matplotlib."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_gradsched.core.report import OverlapReport
from lightning_gradsched.errors import GradSchedError
from lightning_gradsched.files import written_whole
from lightning_gradsched.render import png_notes
from lightning_gradsched.render.layout import KINDS, Box, Panel, Picture, Row, picture_of
from lightning_gradsched.trace import Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, FigureBase

COLORS = {
    "between": "#c3cad3",
    "backward": "#6f93bd",
    "fill": "#2b4566",
    "waiting": "#e0b93c",
    "hidden": "#3f9f8b",
    "exposed": "#d8394c",
}
_WIDTH_IN, _DPI = 12.0, 150
# Of the figure, what is left for the axes; of a character at 8 points.
_AXES_WIDTH_IN, _CHARACTER_IN = 10.6, 0.068
_THIN_IN = 0.04
_GAP = 0.22


def write_png(trace: Trace, path: Path) -> None:
    """Write the picture of ``trace`` to ``path``.

    Raises:
        GradSchedError: matplotlib is not installed.
    """
    figure = _figure(picture_of(trace), trace.report)
    with written_whole(path) as fresh:
        figure.savefig(fresh, dpi=_DPI, format="png")


def write_picture(picture: Picture, title: str, path: Path) -> None:
    """Write ``picture`` alone, of no report.

    Raises:
        GradSchedError: matplotlib is not installed.
    """
    figure = _empty(_timeline_in(picture))
    _draw_timeline(figure, picture, title)
    with written_whole(path) as fresh:
        figure.savefig(fresh, dpi=_DPI, format="png")


def _empty(height_in: float) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise GradSchedError(
            "the PNG is drawn by matplotlib, which is not installed: pip install matplotlib, or"
            " ask for the page alone with --html PATH"
        ) from error
    return Figure(figsize=(_WIDTH_IN, height_in), layout="constrained")


def _timeline_in(picture: Picture) -> float:
    return 1.7 + 0.62 * sum(map(_height, picture.panels))


def _figure(picture: Picture, report: OverlapReport) -> Figure:
    timeline_in = _timeline_in(picture)
    columns = png_notes.columns_of(report)
    notes_in = png_notes.height_in(columns) if columns else 0.0
    whole = _empty(timeline_in + notes_in)
    if not columns:
        _draw_timeline(whole, picture, _title(report))
        return whole
    heights = [timeline_in, notes_in]
    upper, lower = whole.subfigures(2, 1, squeeze=False, height_ratios=heights)[:, 0]
    _draw_timeline(upper, picture, _title(report))
    png_notes.draw(lower, columns)
    return whole


def _draw_timeline(figure: FigureBase, picture: Picture, title: str) -> None:
    heights = [_height(panel) for panel in picture.panels]
    axes = figure.subplots(
        len(heights), sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights}
    )[:, 0]
    for panel, ax in zip(picture.panels, axes, strict=True):
        _draw_panel(ax, panel, picture)
        if len(heights) > 1:
            ax.set_title(panel.title, loc="left", fontsize=10)
    axes[-1].set_xlabel("ms since backward began")
    figure.suptitle(title, fontsize=12)
    _draw_legend(figure, picture.kinds())


def _title(report: OverlapReport) -> str:
    measured = (
        f"step {report.step_s * 1e3:.1f} ms   ·   exposed communication"
        f" {report.exposed_s * 1e3:.1f} ms   ·   {report.overlap:.0%} of"
        f" {report.comm_s * 1e3:.1f} ms communication hidden"
    )
    if report.predicted is None:
        return measured
    step_ms, comm_ms, exposed_ms = (f"{seconds * 1e3:.1f} ms" for seconds in report.predicted)
    return (
        f"{measured}\npredicted: step {step_ms} without optimizer and data   ·   exposed"
        f" {exposed_ms} of {comm_ms} communication"
    )


def _height(panel: Panel) -> float:
    return sum(row.height + _GAP for row in panel.rows) + _GAP


def _draw_panel(ax: Axes, panel: Panel, picture: Picture) -> None:
    for start_s, end_s in panel.exposed:
        ax.axvspan(start_s * 1e3, end_s * 1e3, color=COLORS["exposed"], alpha=0.13, linewidth=0)
    top, centres = _GAP, []
    for row in panel.rows:
        _draw_row(ax, row, top, picture.end_s - picture.start_s)
        centres.append(top + row.height / 2)
        top += row.height + _GAP
    ax.set_yticks(centres, [row.name for row in panel.rows])
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(top, 0)
    margin_ms = 5 * (picture.end_s - picture.start_s)
    ax.set_xlim(picture.start_s * 1e3 - margin_ms, picture.end_s * 1e3 + margin_ms)
    ax.grid(axis="x", color="#000000", alpha=0.1)
    ax.set_axisbelow(True)
    ax.spines[["top", "right", "left"]].set_visible(False)


def _draw_row(ax: Axes, row: Row, top: float, extent_s: float) -> None:
    pitch = row.height / len(row.lanes)
    height = pitch * (0.85 if len(row.lanes) > 1 else 1)
    for number, lane in enumerate(row.lanes):
        _draw_boxes(ax, lane, (top + number * pitch, height), extent_s)
        for box in _labelled(lane, extent_s):
            ax.text(
                (box.start_s + box.end_s) * 500,
                top + row.height / 2,
                box.text,
                ha="center",
                va="center",
                fontsize=8,
                color="black" if box.kind == "between" else "white",
                parse_math=False,
                bbox={"facecolor": COLORS[box.kind], "edgecolor": "none", "pad": 1.5},
            )


def _draw_boxes(
    ax: Axes, boxes: Sequence[Box], bottom_height: tuple[float, float], extent_s: float
) -> None:
    """One call for all boxes that look alike: a call each takes seconds for a thousand groups."""
    alike: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for box in boxes:
        start_and_length_ms = box.start_s * 1e3, (box.end_s - box.start_s) * 1e3
        look = box.kind, _edge_color(box, extent_s)
        alike.setdefault(look, []).append(start_and_length_ms)
    for (kind, edge), ranges in alike.items():
        ax.broken_barh(
            ranges,
            bottom_height,
            facecolor=COLORS[kind],
            edgecolor=edge,
            # Edges would cover the lanes of hundreds of groups.
            linewidth=min(0.4, 4 * bottom_height[1]),
            # Colour alone does not tell everybody.
            hatch="////" if kind == "exposed" and edge == "white" else None,
        )


def _edge_color(box: Box, extent_s: float) -> str:
    """White between neighbours; its own for a box that white edges would cover."""
    return "white" if _width_in(box, extent_s) > _THIN_IN else COLORS[box.kind]


def _width_in(box: Box, extent_s: float) -> float:
    return _AXES_WIDTH_IN * (box.end_s - box.start_s) / extent_s


def _labelled(lane: tuple[Box, ...], extent_s: float) -> Iterator[Box]:
    """The boxes that are wide enough for their text."""
    for box in lane:
        if box.text and _width_in(box, extent_s) > _CHARACTER_IN * (len(box.text) + 1):
            yield box


def _draw_legend(figure: FigureBase, kinds: list[str]) -> None:
    from matplotlib.patches import Patch

    patches = [
        Patch(
            facecolor=COLORS[kind],
            edgecolor="white",
            hatch="////" if kind == "exposed" else None,
            label=KINDS[kind],
        )
        for kind in kinds
    ]
    figure.legend(
        handles=patches, loc="outside lower center", ncols=len(kinds), frameon=False, fontsize=9
    )

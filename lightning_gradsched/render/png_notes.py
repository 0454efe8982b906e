"""The lines of text below the PNG's timeline: what was exposed and why, and the tried plans."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_gradsched.core.report import GroupRow, OverlapReport
from lightning_gradsched.core.report_text import tried_lines

if TYPE_CHECKING:
    from matplotlib.figure import FigureBase

# Groups that are named, the costliest first; the report has them all.
MOST_GROUPS = 6
LINE_IN, MARGIN_IN = 0.17, 0.35
_FONT_SIZE = 8.5
# What fits into half of the picture.
_MOST_CHARACTERS = 78


def columns_of(report: OverlapReport) -> list[list[str]]:
    """Columns of lines, none longer than fits; empty where nothing was exposed or tried."""
    columns = [_exposed_lines(report), list(tried_lines(report.tried))]
    return [[line[:_MOST_CHARACTERS] for line in lines] for lines in columns if lines]


def height_in(columns: list[list[str]]) -> float:
    """Of the figure, for ``columns``."""
    return LINE_IN * max(map(len, columns)) + MARGIN_IN


def draw(figure: FigureBase, columns: list[list[str]]) -> None:
    """Write the columns side by side over ``figure``."""
    for number, lines in enumerate(columns):
        figure.text(
            0.02 + 0.5 * number,
            0.95,
            "\n".join(lines),
            va="top",
            fontsize=_FONT_SIZE,
            family="monospace",
            parse_math=False,
        )


def _exposed_lines(report: OverlapReport) -> list[str]:
    exposed = sorted((row for row in report.rows if row.exposed_s), key=lambda r: -r.exposed_s)
    if not exposed:
        return []
    predicted = "  predicted" if report.predicted else ""
    more = len(exposed) - MOST_GROUPS
    return [
        f"group  exposed ms{predicted}  why",
        *(_line(row, bool(report.predicted)) for row in exposed[:MOST_GROUPS]),
        *([f"and {more} more groups"] if more > 0 else []),
    ]


def _line(row: GroupRow, has_prediction: bool) -> str:
    predicted = ""
    if has_prediction:
        known = row.predicted_exposed_s
        predicted = f"  {'-' if known is None else f'{known * 1e3:.2f}':>9}"
    return f"{row.label:>5}  {row.exposed_s * 1e3:>10.2f}{predicted}  {row.why}"

"""The timeline as inline SVG; its colours are the page's, so that it follows light and dark."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from math import ceil, floor, log10

from lightning_gradsched.render.layout import Box, Panel, Picture, Row

# Units of the picture: pixels where the page is as wide as this.
WIDTH, LEFT, RIGHT = 1100.0, 110.0, 14.0
_ROW, _GAP, _TITLE, _AXIS = 32.0, 9.0, 22.0, 40.0
_CHARACTER, _THIN = 6.4, 4.0


def timeline_svg(picture: Picture) -> str:
    """Panels below one another over one time axis."""
    parts: list[str] = []
    top = 0.0
    for panel in picture.panels:
        if len(picture.panels) > 1:
            parts.append(_text(0, top + 15, panel.title, "panel"))
            top += _TITLE
        parts.extend(_panel(panel, picture, top))
        top += _height(panel)
    body = "\n".join([*_axis(picture, top), *parts])
    return (
        f'<svg viewBox="0 0 {WIDTH:g} {top + _AXIS:g}" role="img"'
        f' aria-label="timeline of one step">\n{body}\n</svg>'
    )


def _height(panel: Panel) -> float:
    return sum(row.height * _ROW + _GAP for row in panel.rows) + _GAP


def _x(picture: Picture, time_s: float) -> float:
    share = (time_s - picture.start_s) / (picture.end_s - picture.start_s)
    return LEFT + share * (WIDTH - LEFT - RIGHT)


def _panel(panel: Panel, picture: Picture, top: float) -> Iterator[str]:
    for start_s, end_s in panel.exposed:
        x = _x(picture, start_s)
        yield _rect(x, top, _x(picture, end_s) - x, _height(panel) - _GAP / 2, "band")
    for row in panel.rows:
        yield _text(LEFT - 10, top + _GAP + row.height * _ROW / 2 + 4, row.name, "row")
        yield from _row(row, picture, top + _GAP)
        top += row.height * _ROW + _GAP


def _row(row: Row, picture: Picture, top: float) -> Iterator[str]:
    lane_height = row.height * _ROW / len(row.lanes)
    height = lane_height * (0.85 if len(row.lanes) > 1 else 1)
    for number, lane in enumerate(row.lanes):
        for box in lane:
            yield _box(box, picture, top + number * lane_height, height)


def _box(box: Box, picture: Picture, top: float, height: float) -> str:
    x = _x(picture, box.start_s)
    width = _x(picture, box.end_s) - x
    # Edges would cover a thin box.
    edged = f"box {box.kind}" if min(width, height) > _THIN else box.kind
    rect = _rect(x, top, max(width, 1.0), height, edged)
    fits = box.text and width > _CHARACTER * (len(box.text) + 1)
    label = _text(x + width / 2, top + height / 2 + 4, box.text, f"on-{box.kind}") if fits else ""
    return f"<g><title>{escape(box.tip)}</title>{rect}{label}</g>"


def _axis(picture: Picture, bottom: float) -> Iterator[str]:
    for tick_ms in ticks(picture.start_s * 1e3, picture.end_s * 1e3):
        x = _x(picture, tick_ms * 1e-3)
        yield f'<line class="grid" x1="{x:.1f}" y1="0" x2="{x:.1f}" y2="{bottom:.1f}"/>'
        yield _text(x, bottom + 14, f"{tick_ms:g}", "tick")
    yield _text((LEFT + WIDTH - RIGHT) / 2, bottom + 33, "ms since backward began", "tick")


def ticks(start: float, end: float) -> list[float]:
    """Round numbers from ``start`` to ``end``, about ten.

    >>> ticks(-26.0, 52.0)
    [-20.0, -10.0, 0.0, 10.0, 20.0, 30.0, 40.0, 50.0]
    """
    power = 10.0 ** floor(log10((end - start) / 10))
    step = next(m * power for m in (1, 2, 5, 10) if (end - start) / (m * power) <= 12)
    return [round(i * step, 9) + 0.0 for i in range(ceil(start / step), floor(end / step) + 1)]


def _rect(x: float, y: float, width: float, height: float, css: str) -> str:
    size = f'width="{width:.2f}" height="{height:.2f}"'
    return f'<rect class="{css}" x="{x:.2f}" y="{y:.2f}" {size}/>'


def _text(x: float, y: float, text: str, css: str) -> str:
    return f'<text class="{css}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'

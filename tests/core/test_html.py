"""The page of a report: well-formed, its texts, and what its timeline draws where."""

from __future__ import annotations

import re
from functools import cache
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from lightning_gradsched.core.networks import NETWORKS
from lightning_gradsched.core.published import deepcam
from lightning_gradsched.core.reasons import REASONS
from lightning_gradsched.core.report import GroupInfo, OverlapReport
from lightning_gradsched.core.scale import MODES, Scenario
from lightning_gradsched.render.html import ADVICE, html_page
from lightning_gradsched.render.svg import LEFT, RIGHT, WIDTH
from lightning_gradsched.trace import Trace
from tests.core.test_render import BETTER, GROUPS, TOGETHER, full_trace, trace

# Elements that are never closed.
VOID = {"meta", "link", "img", "br", "hr", "input"}
# What is predicted of these goes on into the next step.
GO_ON = [mode for mode in MODES if mode != "backward"]
# Coordinates are written with two digits, and the thinnest box is a unit wide.
ROUNDING = 0.02


class Page(HTMLParser):
    """The text of each table's cells, and all tags with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self._open: list[str] | None = None
        self.texts: list[str] = []
        self.open_tags: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open_tags.append(tag)
        if tag == "table":
            self._rows = self.tables.setdefault(str(dict(attrs)["id"]), [])
        elif tag == "tr":
            self._rows.append([])
        elif tag == "td":
            self._rows[-1].append("")
            self._open = self._rows[-1]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open_tags.pop() == tag
        if tag == "td":
            self._open = None

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self._open is not None:
            self._open[-1] += data


@cache
def trace_of_mode(mode: str) -> Trace:
    """A step that was predicted, and measured alike: the page shows two predicted in a row."""
    step = Scenario(deepcam().profile, NETWORKS["ethernet-10g"], mode=mode).timeline(64, "none")
    groups = [
        GroupInfo(label, (f"net.{label}",), 1024)
        for label in step.own_transfers()
        if label.isdigit()
    ]
    return Trace(OverlapReport.of([step], groups, predicted=step), (step,), "R0 W0", step)


PAGES: dict[str, Any] = {
    "a step": trace,
    "and the predicted one": lambda: trace(BETTER),
    "all that is known": full_trace,
    **{f"{mode}, two steps": (lambda mode=mode: trace_of_mode(mode)) for mode in GO_ON},
}


@pytest.mark.parametrize("name", PAGES)
def test_every_element_is_closed_and_every_box_has_a_colour(name: str) -> None:
    text = html_page(PAGES[name](), title="<run> & more")
    page = Page(text)
    assert page.open_tags == []
    assert "$" not in text, "what the template names is filled in"
    colours = {
        css.split()[-1] for tag, attrs in page.tags if tag == "rect" and (css := attrs["class"])
    }
    assert all(f".{colour} {{ fill: " in text for colour in colours), colours


def test_rows_of_groups_in_pieces_share_what_is_exposed() -> None:
    report = trace_of_mode("overlap_forward").report
    assert sum(row.exposed_s for row in report.rows) == pytest.approx(report.exposed_s)
    assert all(row.exposed_s > 0 for row in report.rows[1:]), "the first is hidden by backward"


def number(element: ElementTree.Element, name: str) -> float:
    return float(element.attrib[name])


@pytest.mark.parametrize("name", PAGES)
def test_what_the_timeline_draws_lies_within_it(name: str) -> None:
    text = html_page(PAGES[name](), title="run")
    svg = ElementTree.fromstring(re.findall(r"<svg.*?</svg>", text, re.DOTALL)[0])
    _, _, width, height = map(float, svg.attrib["viewBox"].split())
    assert width == WIDTH
    rects = list(svg.iter("rect"))
    assert rects
    for rect in rects:
        left, top = number(rect, "x"), number(rect, "y")
        assert left >= LEFT - ROUNDING, rect.attrib
        assert number(rect, "width") > 0, rect.attrib
        assert left + number(rect, "width") <= WIDTH - RIGHT + 1 + ROUNDING, rect.attrib
        assert top >= 0, rect.attrib
        assert top + number(rect, "height") <= height, rect.attrib
    for element in svg.iter("text"):
        assert element.text
        assert 0 <= number(element, "x") <= WIDTH
        assert 0 < number(element, "y") < height


@pytest.mark.parametrize("mode", GO_ON)
def test_boxes_of_a_lane_do_not_overlap_in_two_steps(mode: str) -> None:
    text = html_page(trace_of_mode(mode), title="run")
    svg = ElementTree.fromstring(re.findall(r"<svg.*?</svg>", text, re.DOTALL)[0])
    titles = [e.text for e in svg.iter("text") if e.attrib["class"] == "panel"]
    assert titles[0].startswith("predicted, two steps: ")
    lanes: dict[float, list[tuple[float, float]]] = {}
    for group in svg.iter("g"):
        (rect,) = group.iter("rect")
        start, width = number(rect, "x"), number(rect, "width")
        if width > 1:  # a thin one is drawn wider than it lasts
            lanes.setdefault(number(rect, "y"), []).append((start, start + width))
    for boxes in lanes.values():
        boxes.sort()
        for (_, end), (start, _) in pairwise(boxes):
            assert start >= end - ROUNDING


def test_the_page_has_each_group_with_all_names_escaped() -> None:
    page = Page(html_page(trace(fastest=TOGETHER), title="<run>"))
    _, first, second = page.tables["groups"]
    assert second == ["1", "stem.weight", "0.5", "9.00", "9.00", "14.00", "3.00", "last group"]
    assert first[0] == "0"
    for name in GROUPS[0].names:
        assert name in first[1]
    assert "+2 more" in first[1]
    assert not [tag for tag, _ in page.tags if tag in ("b&amp", "run")]
    assert "<run>" in page.texts
    assert "R0 R1 W0 W1" in page.texts


def test_the_page_says_what_may_help_costliest_first() -> None:
    rows = Page(html_page(trace(fastest=TOGETHER), title="run")).tables["reasons"][1:]
    assert [row[:3] for row in rows] == [
        ["last group", "1", "3.00"],
        ["ready too late to hide", "1", "1.00"],
    ]
    assert rows[0][3:] == [*ADVICE["last group"]]


def test_the_page_has_the_numbers_and_what_was_predicted() -> None:
    texts = Page(html_page(trace(BETTER), title="run")).texts
    assert {"4.0 ms", "6.0 ms", "33%", "predicted 0.3 ms", "predicted 1.3 ms"} <= {*texts}
    assert any(text.endswith(" ms without optimizer and data") for text in texts)
    assert "communication, exposed" in texts
    assert any(text.startswith("group 1: 3.00 ms, from 11.00 to 14.00") for text in texts)


def test_the_page_has_stragglers_predictions_and_tried_plans() -> None:
    page = Page(html_page(full_trace(), title="run"))
    _, first, second = page.tables["groups"]
    assert first[5:] == ["11.00", "2.00", "1.00", "0.00", "latency-bound"]
    assert second[5:] == ["14.00", "10.31", "3.00", "0.31", "straggler: waited 2.0 ms for rank 5"]
    assert [row[0] for row in page.tables["reasons"][1:]] == ["straggler", "latency-bound"]
    assert page.tables["tried"][1:] == [
        ["ddp", "2", "4.20", "21.00", ""],
        ["<i>mine", "3", "3.10", "19.00", "kept"],
    ]
    assert "i" not in [tag for tag, attrs in page.tags if not attrs]


def test_the_page_of_untried_plans_has_no_table_of_them() -> None:
    assert "tried" not in Page(html_page(trace(BETTER), title="run")).tables


def test_the_page_loads_nothing() -> None:
    text = html_page(full_trace(), title="run")
    assert not {tag for tag, _ in Page(text).tags} & {"script", "link", "img", "iframe"}
    assert "http" not in text
    assert "url(" not in text


def test_advice_covers_the_reasons_of_the_report_and_its_guide() -> None:
    assert {*ADVICE} == {*REASONS}
    guide = (Path(__file__).parents[2] / "docs" / "reading-the-report.md").read_text()
    for reason, (_, help_text) in ADVICE.items():
        line = next(line for line in guide.splitlines() if line.startswith(f"| {reason} |"))
        assert help_text.replace("'", "") in line.replace('"', "").replace("`", "").replace("'", "")

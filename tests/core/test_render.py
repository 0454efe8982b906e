"""A trace as a file, a table, a picture and a PNG; the HTML page has tests of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lightning_gradsched.commands import report as command
from lightning_gradsched.core.cost import AlphaBeta
from lightning_gradsched.core.reasons import Fastest
from lightning_gradsched.core.report import GroupInfo, OverlapReport, TriedPlan
from lightning_gradsched.core.timeline import COMMUNICATION, COMPUTE, Span, Timeline
from lightning_gradsched.errors import GradSchedError
from lightning_gradsched.render import png_notes
from lightning_gradsched.render.layout import exposed_intervals, picture_of
from lightning_gradsched.render.png import write_png
from lightning_gradsched.render.svg import ticks
from lightning_gradsched.trace import Trace, read_trace, write_trace
from tests.core.test_report import step

# Exposed: 1 ms of group 0 and 3 of group 1, which waits until 0.011 for the link.
TYPICAL = step((0.008, 0.008, 0.011), (0.009, 0.009, 0.014), backward_s=0.010)
WORSE = step((0.008, 0.008, 0.012), (0.009, 0.009, 0.016), backward_s=0.010)
BETTER = step((0.001, 0.001, 0.002), (0.010, 0.010, 1 / 97), backward_s=0.010)
GROUPS = (
    GroupInfo("0", ("head.<b>&amp", "head.weight", 'body."w"', "body.bias"), 2048),
    GroupInfo("1", ("stem.weight",), 512),
)


TRIED = (
    TriedPlan("ddp", 2, predicted_exposed_s=0.0042, step_s=0.021, kept=False),
    TriedPlan("<i>mine", 3, predicted_exposed_s=0.0031, step_s=0.019, kept=True),
)


def trace(predicted: Timeline | None = None, **known: Any) -> Trace:
    timelines = WORSE, BETTER, TYPICAL
    report = OverlapReport.of(timelines, GROUPS, predicted=predicted, **known)
    return Trace(report, timelines, "R0 R1 W0 W1", predicted)


# As of ranks that come to every transfer at once.
TOGETHER = [[Fastest(1.0, rank=0)] * 2] * 3


def full_trace() -> Trace:
    """With all that can be known: group 0 is latency-bound, group 1 waited 2 ms for rank 5."""
    fastest = [Fastest(0.003, rank=0), Fastest(0.001, rank=5)]
    cost = AlphaBeta(1e-3, 1e-12)
    return trace(BETTER, cost=cost, fastest=[fastest] * 3, tried=TRIED)


def written(path: Path, made: Trace | None = None, *, is_writer: bool = True) -> Path:
    """As the strategy writes it when a fit ends."""
    made = made or trace()
    scheduler: Any = SimpleNamespace(
        report=lambda across_ranks: made.report if across_ranks else None,
        timelines=lambda: [*made.timelines],
        schedule=made.schedule,
        predicted=made.predicted,
    )
    write_trace(scheduler, path, is_writer=is_writer)
    return path


@pytest.mark.parametrize("made", [trace(), trace(BETTER), full_trace()])
def test_a_trace_is_read_back_to_the_last_bit(tmp_path: Path, made: Trace) -> None:
    path = written(tmp_path / "sub" / "trace.json", made)
    assert read_trace(path) == made
    assert [file.name for file in path.parent.iterdir()] == ["trace.json"]


def test_one_rank_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(tmp_path / "trace.json", is_writer=False)
    assert [*tmp_path.iterdir()] == []
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("predicted", [None, BETTER])
def test_a_trace_of_the_first_format_is_summed_up_anew(
    tmp_path: Path, predicted: Timeline | None
) -> None:
    made = trace(predicted)
    content = json.loads(json.dumps(made.to_json()))
    content["otherData"]["gradsched"].update(format=1, groups=GROUPS)
    for added in ("predicted", "tried"):
        del content["otherData"]["report"][added]
    path = tmp_path / "trace.json"
    path.write_text(json.dumps(content))
    assert read_trace(path) == made


def test_trace_viewers_show_the_step_of_the_table(tmp_path: Path) -> None:
    content = json.loads(written(tmp_path / "trace.json").read_text())
    assert content["traceEvents"] == TYPICAL.to_chrome_trace()["traceEvents"]
    assert content["otherData"]["report"]["n_steps"] == 3


def broken(**changes: Any) -> str:
    """A trace of which some fields are others."""
    content = json.loads(json.dumps(trace().to_json()))
    content["otherData"]["gradsched"].update(changes)
    return json.dumps(content)


def misreported(**changes: Any) -> str:
    """A trace of which some fields of the report, or of its first row, are others."""
    content = json.loads(json.dumps(full_trace().to_json()))
    report = content["otherData"]["report"]
    for name, value in changes.items():
        (report if name in report else report["rows"][0])[name] = value
    return json.dumps(content)


@pytest.mark.parametrize(
    ("text", "got"),
    [
        (None, "No such file"),
        ("", "no whole JSON"),
        (broken()[:-20], "no whole JSON"),
        ("[1, 2]", "something else"),
        ('{"traceEvents": []}', "KeyError: 'otherData'"),
        (broken(format=0), "format 0 instead of 2 or 1"),
        (misreported(tried=3), "TypeError"),
        (misreported(tried=[{"planner": "ddp"}]), "KeyError"),
        (misreported(exposed_s="much"), "TypeError"),
        (misreported(finish_s=float("inf")), "impossible finish_s inf"),
        (misreported(waited_for="somebody"), "ValueError"),
        (misreported(predicted=[1, 2]), "TypeError"),
        (broken(timelines=[]), "IndexError"),
        (broken(timelines=[BETTER.spans[:3]]), "KeyError"),
        (broken(timelines=[[["compute", "backward", 0, float("nan")]]]), "impossible span"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str | None, got: str) -> None:
    path = tmp_path / "trace.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(GradSchedError) as caught:
        read_trace(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: expected a trace")
    assert got in message
    assert "trace_path='trace.json'" in message


@pytest.mark.parametrize("timeline", [TYPICAL, WORSE, BETTER])
def test_marked_intervals_are_the_exposed_time(timeline: Timeline) -> None:
    marked_s = sum(end_s - start_s for start_s, end_s in exposed_intervals(timeline))
    assert marked_s == pytest.approx(timeline.exposed_s(), abs=1e-12)


def test_a_fill_after_backward_hides_communication() -> None:
    fill = Span(COMPUTE, "fill 1", 0.010, 0.012)
    spans = Span(COMPUTE, "backward", 0, 0.010), fill, Span(COMMUNICATION, "0", 0.009, 0.013)
    assert exposed_intervals(Timeline(spans)) == [(0.012, 0.013)]


def boxes(made: Trace, row_name: str) -> list[tuple[str, float, float, str]]:
    rows = picture_of(made).panels[-1].rows
    lanes = next(row.lanes for row in rows if row.name == row_name)
    return [(b.kind, b.start_s, b.end_s, b.text) for lane in lanes for b in lane]


def one_step(timeline: Timeline, groups: Sequence[GroupInfo] = GROUPS, **known: Any) -> Trace:
    report = OverlapReport.of([timeline], groups, **known)
    return Trace(report, (timeline,), "", known.get("predicted"))


def test_rows_of_the_picture() -> None:
    made = one_step(TYPICAL)
    assert boxes(made, "communication") == [
        ("hidden", 0.008, 0.010, "0"),
        ("exposed", 0.010, 0.011, "0"),
        ("exposed", 0.011, 0.014, "1"),
    ]
    assert boxes(made, "waiting") == [("waiting", 0.009, 0.011, "")]


def test_a_long_pause_between_backwards_is_cut() -> None:
    """The helper's step begins 5 s before a backward of 10 ms."""
    made = one_step(TYPICAL)
    assert picture_of(made).start_s == -0.014
    assert boxes(made, "compute")[0] == ("between", -0.014, 0.0, "… before 5000.0 ms")


def test_the_predicted_step_stands_above_on_the_same_axis() -> None:
    picture = picture_of(trace(BETTER))
    titles = [panel.title for panel in picture.panels]
    assert titles == ["predicted: 0.3 ms exposed", "measured: 4.0 ms exposed"]
    assert picture.end_s == 0.014


@pytest.mark.parametrize(
    ("start", "end", "first", "last"), [(-3.0, 4e3, 0, 4000), (0, 0.02, 0, 0.02)]
)
def test_ticks_are_round_and_few(start: float, end: float, first: float, last: float) -> None:
    found = ticks(start, end)
    assert (found[0], found[-1]) == (first, last)
    assert 5 <= len(found) <= 13


@pytest.mark.parametrize("n_groups", [1, 60])
@pytest.mark.parametrize("is_full", [False, True])
def test_the_png_shows_the_exposed_part(tmp_path: Path, n_groups: int, is_full: bool) -> None:
    image = pytest.importorskip("matplotlib.image")
    timeline = step(*((0.2 * i, 0.2 * i, 0.2 * i + 1) for i in range(n_groups)), backward_s=0.5)
    groups = tuple(GroupInfo(str(i), ("w",), 4) for i in range(n_groups))
    known: dict[str, Any] = {"predicted": timeline, "tried": TRIED} if is_full else {}
    write_png(one_step(timeline, groups, **known), tmp_path / "trace.png")
    pixels = image.imread(tmp_path / "trace.png")[..., :3]
    height, width, _ = pixels.shape
    assert width == 1800
    assert 400 < height < 1800
    warning = abs(pixels - [0xD8 / 255, 0x39 / 255, 0x4C / 255]).max(-1) < 0.02
    assert warning.sum() > 1000


def test_below_the_png_stands_what_was_exposed_and_tried() -> None:
    exposed, tried = png_notes.columns_of(full_trace().report)
    assert [" ".join(line.split()) for line in exposed] == [
        "group exposed ms predicted why",
        "1 3.00 0.31 straggler: waited 2.0 ms for rank 5",
        "0 1.00 0.00 latency-bound",
    ]
    assert tried[2].split() == ["<i>mine", "3", "3.10", "19.00", "kept"]
    assert png_notes.columns_of(one_step(BETTER, predicted=BETTER).report)[0][1].startswith("    1")
    hidden = step((0.001, 0.001, 0.002), (0.002, 0.002, 0.003), backward_s=0.010)
    assert png_notes.columns_of(one_step(hidden).report) == []


def test_of_many_exposed_groups_the_png_names_the_costliest() -> None:
    timeline = step(*((0.1 * i, 0.1 * i, 1 + i * i) for i in range(9)), backward_s=0.5)
    groups = [GroupInfo(str(i), ("w",), 4) for i in range(9)]
    (lines,) = png_notes.columns_of(one_step(timeline, groups).report)
    assert [line.split()[0] for line in lines[1:-1]] == ["8", "7", "6", "5", "4", "3"]
    assert lines[-1] == "and 3 more groups"


def run(*words: object) -> int:
    parser = ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args(list(map(str, words))))


@pytest.mark.parametrize(
    ("options", "files"),
    [
        ([], {"trace.png", "trace.html"}),
        (["--no-pictures"], set()),
        (["--html", "page.html"], {"page.html"}),
        (["--png", "a.png", "--html", "sub/b.html"], {"a.png", "sub/b.html"}),
    ],
)
def test_the_command_prints_the_table_and_writes_what_was_asked(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    files: set[str],
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    path = written(Path("trace.json"))
    capsys.readouterr()
    assert run(path, *options) == 0
    assert capsys.readouterr().out.startswith(f"{trace().report}\n")
    found = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert found == {"trace.json", *files}


def test_pictures_where_they_cannot_go(tmp_path: Path) -> None:
    path = written(tmp_path / "trace.html")
    with pytest.raises(GradSchedError, match=r"trace\.html: writing there would replace the trace"):
        run(path)
    assert read_trace(path) == trace()
    with pytest.raises(GradSchedError, match="either --no-pictures or"):
        run(path, "--no-pictures", "--png", "a.png")
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(GradSchedError, match=r"folder\.html: cannot be written"):
        run(path, "--html", tmp_path / "folder.html")


def test_without_matplotlib_there_is_still_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    path = written(tmp_path / "trace.json")
    with pytest.raises(GradSchedError, match="pip install matplotlib"):
        run(path)
    assert {file.name for file in tmp_path.iterdir()} == {"trace.json", "trace.html"}


def test_the_command_loads_neither_torch_nor_matplotlib() -> None:
    code = (
        "import sys, lightning_gradsched.commands.report\n"
        "print([m for m in ('torch', 'lightning', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

"""The page of overlapped forwards shows what was measured of halves, and how it is summed up."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.scatter import DDP, HALVES, WAITS, WHOLE, collectives_markdown, steps_markdown

ROOT = Path(__file__).parents[2]


def test_ways_are_shares_of_the_all_reduce_in_the_same_round() -> None:
    times = {"1 MiB": {WHOLE: [0.010, 0.020, 0.040], "half": [0.005, 0.010, 0.040]}}
    assert collectives_markdown(times).splitlines()[-1] == (
        "| 1 MiB | 20.00 ms | 0.50 (0.50 to 1.00) |"
    )


def test_steps_are_compared_with_those_in_halves() -> None:
    seconds = {HALVES: [1.0, 1.0, 2.0], WAITS: [2.0, 1.5, 3.0], DDP: [1.0, 2.0, 2.0]}
    assert steps_markdown({"net": {"rivals": seconds}}).splitlines()[-1] == (
        "| net | 1.000 | 2.000 | 2.000 | 1.50 (1.50 to 2.00) | 1.00 (1.00 to 2.00) |"
    )


def test_the_page_has_the_tables_of_the_results() -> None:
    results = json.loads((ROOT / "benchmarks/results/scatter.json").read_text())
    page = (ROOT / "docs/overlap-forward.md").read_text()
    assert collectives_markdown(results["collectives"]) in page
    assert steps_markdown(results["steps"]) in page

"""The page has the tables of the compiled nets' results, and how they are summed up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.compiled import OURS, as_markdown

ROOT = Path(__file__).parents[2]


def test_a_row_has_the_median_and_the_ratio_within_rounds() -> None:
    cell = {
        "rate_bit_per_s": 1e9,
        "n_nodes": {"DDP default": 2, OURS: 5},
        "seconds": {"DDP default": [0.4, 0.2, 0.3], OURS: [0.2, 0.2, 0.3]},
    }
    *_, theirs, ours = as_markdown([cell]).splitlines()
    assert theirs == "| 1 Gbit/s | DDP default | 2 | 300 | 1.000 (0.500 to 1.000) |"
    assert ours == "| 1 Gbit/s | gradsched | 5 | 200 |  |"


@pytest.mark.parametrize("name", ["compiled", "compiled_layers"])
def test_the_page_has_the_table_of_the_results(name: str) -> None:
    results = json.loads((ROOT / f"benchmarks/results/{name}.json").read_text())
    assert as_markdown(results["cells"]) in (ROOT / "docs/benchmarks.md").read_text()

"""The page of the hierarchical reduction shows what was measured, and how it is summed up."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.hierarchical import as_markdown
from lightning_gradsched.core.profile import ALL_REDUCE, HIERARCHICAL_ALL_REDUCE

ROOT = Path(__file__).parents[2]


def test_a_row_has_medians_and_the_ratio_within_rounds():
    row = {
        "cell": {"name": "2 x 2"},
        "times": {
            "1 MiB": {
                ALL_REDUCE: [0.030, 0.020, 0.040],
                HIERARCHICAL_ALL_REDUCE: [0.010, 0.020, 0.020],
            }
        },
        "cpu": {"1 MiB": {ALL_REDUCE: [0.001, 0.003], HIERARCHICAL_ALL_REDUCE: [0.004, 0.004]}},
        "chosen": ["hierarchical", "why"],
    }
    last = as_markdown([row]).splitlines()[-1]
    assert last == "| 2 x 2 | 1 MiB | 30.0 | 20.0 | 2.00 (1.00 to 3.00) | 2 and 4 | hierarchical |"


def test_the_page_has_the_table_of_the_results():
    results = json.loads((ROOT / "benchmarks/results/hierarchical.json").read_text())
    assert as_markdown(results["cells"]) in (ROOT / "docs/hierarchical.md").read_text()

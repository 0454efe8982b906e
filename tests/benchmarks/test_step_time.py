"""The step-time benchmark: its numbers from hand-made cells, and one real cell on real links."""

from __future__ import annotations

import doctest
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import links, rounds, time_to_psnr
from benchmarks.step_time_picture import draw
from benchmarks.step_time_table import as_markdown, forward_markdown, modes_markdown, summarise
from benchmarks.tables import TABLES
from lightning_gradsched.core.profile import BackwardProfile, NetworkProfile, ParamProfile, Sample


def can_make_links() -> bool:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    try:
        with links.ShapedLinks(1, 1e9):
            return True
    except links.LinkError:
        return False


def cell() -> dict[str, Any]:
    """Two gradients of a MiB, ready after 1 and 2 s; a MiB takes 1 s, and nothing else does."""
    mib = 1 << 20
    params = (ParamProfile("b", mib, ready_s=1.0), ParamProfile("a", mib, ready_s=2.0))
    samples = tuple(Sample("all_reduce", n * mib, float(n)) for n in (1, 2, 4))
    return {
        "cell": {"net": "made_up", "ratio": 2 / 3},
        "comm_s": 2.0,
        "rivals": {
            "alone": [3.0, 3.0, 3.0],
            "gradsched": [4.0, 4.4, 4.0],
            "ddp_default": [5.0, 5.5, 5.0],
            "ddp_1MiB": [4.0, 4.0, 4.0],
            "ddp_one_bucket": [5.0, 5.0, 5.0],
        },
        "set_up_s": {"gradsched": [0.5, 5.0, 4.0]},
        "gradsched": {
            "planner": "optimal",
            "groups": [["b"], ["a"]],
            "backward_profile": json.loads(BackwardProfile(params, 1.0, 2.0).to_json()),
            "network_profile": json.loads(NetworkProfile("gloo", 2, 2, 1, samples).to_json()),
        },
    }


def test_a_summary_by_hand() -> None:
    summary = summarise(cell())
    assert summary["best_ddp"] == "ddp_1MiB"
    assert summary["bound_s"] == 3.0, "compute; communication takes 2 s"
    assert summary["best_simulated_s"] == pytest.approx(4.0), "the last MiB follows backward"
    assert summary["planning"] == pytest.approx(
        {"n_steps": 2, "calibration_s": 0.5, "total_s": 9.5, "lost_s": 1.5}
    )
    rivals = summary["rivals"]
    assert rivals["ddp_1MiB"]["gradsched_ratio"][0] == 1.0, "the median of 1, 1.1 and 1"
    assert rivals["ddp_one_bucket"]["predicted_s"] == pytest.approx(5.0)
    assert rivals["gradsched"]["exposed_s"] == 1.0
    assert rivals["gradsched"]["ratio_to_bound"] == pytest.approx(4 / 3)


@pytest.mark.parametrize(("asked", "shown"), [(2 / 3, "0.666667"), (None, "0.67")])
def test_a_net_as_it_is_is_drawn_and_listed_at_the_ratio_that_it_has(
    asked: float | None, shown: str, tmp_path: Path
) -> None:
    row = cell()
    row |= {"cell": {"net": "made_up", "ratio": asked}, "compute": "real"}
    rows = {"it": {**row, "summary": summarise(row)}}
    assert as_markdown(rows).splitlines()[-1].split(" | ")[1] == shown
    draw(rows, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_has_a_line_a_cell_and_marks_rivals_that_did_not_run() -> None:
    row = cell()
    header, _, line = as_markdown({"it": {**row, "summary": summarise(row)}}).splitlines()
    columns = [column.strip() for column in line.strip("|").split("|")]
    assert len(columns) == header.count("|") - 1
    assert columns[:3] == ["made_up", "0.666667", "1MiB"]
    assert columns[6] == "-", "no Horovod"


def test_modes_have_a_table_of_their_own() -> None:
    row = cell()
    assert modes_markdown({"it": {**row, "summary": summarise(row)}}) == ""
    row["rivals"]["gradsched_lag"] = [3.0, 3.3, 3.0]
    header, _, line = modes_markdown({"it": {**row, "summary": summarise(row)}}).splitlines()
    columns = [column.strip() for column in line.strip("|").split("|")]
    assert len(columns) == header.count("|") - 1
    assert columns[2:6] == ["lag", "3000 ms", "1.000", "1MiB"]
    assert columns[6:] == ["0.750 (0.750 to 0.825)", "0.750 (0.750 to 0.750)"]


@pytest.mark.parametrize(
    ("results", "table"),
    [
        ("step_time", as_markdown),
        ("step_time_modes", forward_markdown),
        ("step_time_modes", modes_markdown),
        *(
            (f"step_time_edsr_{n}", table)
            for n in (2, 4)
            for table in (forward_markdown, modes_markdown)
        ),
    ],
)
def test_the_documented_tables_are_those_of_the_results(
    results: str, table: Callable[[Any], str]
) -> None:
    root = Path(__file__).parents[2]
    cells = json.loads((root / f"benchmarks/results/{results}.json").read_text())["cells"]
    assert table(cells) in (root / "docs/benchmarks.md").read_text()


@pytest.mark.parametrize(
    ("name", "n_params", "n_weights"),
    [
        ("resnet50", 161, 25_557_032),
        ("fc_densenet", 20, 22_877_568),
        ("transformer", 152, 22_050_664),
        ("vgg", 32, 9_418_936),
        ("many_small", 1000, 4_096_000),
    ],
)
def test_tables_have_the_published_sizes(name: str, n_params: int, n_weights: int) -> None:
    table = TABLES[name]()
    assert sum(len(layer.numels) for layer in table.layers) == n_params
    assert table.nbytes == n_weights * table.dtype.itemsize


def test_doctests() -> None:
    assert doctest.testmod(links).failed == 0
    assert doctest.testmod(rounds).failed == 0
    assert doctest.testmod(time_to_psnr).failed == 0


@pytest.mark.slow
@pytest.mark.skipif(not can_make_links(), reason="needs root and network namespaces")
def test_a_cell_runs_on_shaped_links_and_leaves_none_behind(tmp_path: Path) -> None:
    command = "-m benchmarks.step_time --nets many_small --ratios 0.5 --cell-s 1 --rate 5e8"
    command += (
        f" --rivals alone gradsched ddp_default --work {tmp_path} --output {tmp_path}/out.json"
    )
    process = subprocess.Popen(
        [sys.executable, *command.split()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    row = json.loads((tmp_path / "out.json").read_text())["cells"]["many_small_0.5"]
    assert row["summary"]["best_ddp"] == "ddp_default"
    # 16.4 MB at 500 Mbit/s: the link is as slow as it was asked to be.
    assert row["comm_s"] > 0.9 * 16.4e6 * 8 / 5e8
    assert (tmp_path / "out.png").stat().st_size > 1000
    # Others may come and go meanwhile.
    assert [name for name in links.existing_hosts() if f"gs{process.pid}h" in name] == []

"""The picture of ``benchmarks.step_time``: each rival's step against what no schedule can beat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.step_time_table import ratio_of
from lightning_gradsched.files import written_whole

# Okabe and Ito's colours, told apart by everyone. "best" is the fastest cap of the sweep.
RIVALS = {
    "fsdp2_replicate": ("FSDP2 replicate", "#999999"),
    "horovod": ("Horovod", "#CC79A7"),
    "ddp_default": ("DDP, default", "#56B4E9"),
    "best": ("DDP, best of the sweep", "#0072B2"),
    "gradsched": ("gradsched", "#009E73"),
}


def draw(rows: Mapping[str, Any], path: Path) -> None:
    """``rows``: the cells of a results file, each with its summary. Writes a PNG."""
    nets = list(dict.fromkeys(row["cell"]["net"] for row in rows.values()))
    figure = Figure(figsize=(max(3.2 * len(nets), 9.0), 3.8), dpi=120, layout="constrained")
    panels = figure.subplots(1, len(nets), sharey=True, squeeze=False)[0]
    for axes, net in zip(panels, nets, strict=True):
        _panel(axes, net, [row for row in rows.values() if row["cell"]["net"] == net])
    panels[0].set_ylabel("step time ÷ max(compute, communication)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    with written_whole(path) as partial:
        figure.savefig(partial, format="png")


def _panel(axes: Axes, net: str, rows: Sequence[Any]) -> None:
    rows = sorted(rows, key=lambda row: row["summary"]["ratio"])
    width = 0.8 / len(RIVALS)
    for number, (name, (label, color)) in enumerate(RIVALS.items()):
        # From the bound up: a bar is what a rival loses.
        lost = [_ratio_to_bound(row["summary"], name) - 1 for row in rows]
        places = [place + (number - 2) * width for place in range(len(rows))]
        axes.bar(places, lost, width, bottom=1.0, label=label, color=color)
    axes.set_xticks(range(len(rows)), [ratio_of(row) for row in rows])
    axes.set(title=f"{net} ({rows[0]['compute']})", xlabel="communication ÷ compute")
    axes.axhline(1.0, color="black", linewidth=0.8)


def _ratio_to_bound(summary: Mapping[str, Any], name: str) -> float:
    rivals = summary["rivals"]
    name = summary["best_ddp"] if name == "best" else name
    return float(rivals[name]["ratio_to_bound"]) if name in rivals else 1.0

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
    "gradsched_forward": ("gradsched, overlap_forward", "#E69F00"),
}


def draw(rows: Mapping[str, Any], path: Path) -> None:
    """``rows``: the cells of a results file, each with its summary. Writes a PNG.

    Of the rivals, those that some cell has. In the bars of ``overlap_forward``, a line at the cut
    bound.
    """
    measured = {name for row in rows.values() for name in row["summary"]["rivals"]} | {"best"}
    names = [name for name in RIVALS if name in measured]
    nets = list(dict.fromkeys(row["cell"]["net"] for row in rows.values()))
    figure = Figure(figsize=(max(3.2 * len(nets), 9.0), 3.8), dpi=120, layout="constrained")
    panels = figure.subplots(1, len(nets), sharey=True, squeeze=False)[0]
    for axes, net in zip(panels, nets, strict=True):
        _panel(axes, names, [row for row in rows.values() if row["cell"]["net"] == net])
    panels[0].set_ylabel("step time ÷ max(compute, communication)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=6)
    with written_whole(path) as partial:
        figure.savefig(partial, format="png")


def _panel(axes: Axes, names: Sequence[str], rows: Sequence[Any]) -> None:
    """Of one net."""
    rows = sorted(rows, key=lambda row: row["summary"]["ratio"])
    width = 0.8 / len(names)
    for number, name in enumerate(names):
        label, color = RIVALS[name]
        # From the bound up: a bar is what a rival loses.
        lost = [_ratio_to_bound(row["summary"], name) - 1 for row in rows]
        places = [place + (number - (len(names) - 1) / 2) * width for place in range(len(rows))]
        axes.bar(places, lost, width, bottom=1.0, label=label, color=color)
        if name == "gradsched_forward":
            least = [_cut_bound(row["summary"]) for row in rows]
            axes.hlines(
                least,
                [p - width / 2 for p in places],
                [p + width / 2 for p in places],
                "black",
                label="least that a step can take",
            )
    axes.set_xticks(range(len(rows)), [ratio_of(row) for row in rows])
    axes.set_title(f"{rows[0]['cell']['net']} ({rows[0]['compute']})")
    axes.set_xlabel("communication ÷ compute")
    axes.axhline(1.0, color="black", linewidth=0.8)


def _cut_bound(summary: Mapping[str, Any]) -> float:
    """As a ratio to the other bound; that one where the mode was not measured."""
    forward = summary.get("forward")
    return float(forward["cut_bound_s"] / summary["bound_s"]) if forward is not None else 1.0


def _ratio_to_bound(summary: Mapping[str, Any], name: str) -> float:
    rivals = summary["rivals"]
    name = summary["best_ddp"] if name == "best" else name
    return float(rivals[name]["ratio_to_bound"]) if name in rivals else 1.0

"""Loss curves of climate segmentation: fp32 and bf16, gradsched and DDP, gradients a step late.

    python -m benchmarks.climate_curves [--steps 160] [--output curves.json] [--picture curves.png]

Each run is `python -m zoo.train experiment=climate_tiny` on two ranks from the same weights and the
same batches. What counts is the loss by step and the test metrics; nothing is timed.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.environment import describe_environment, write_json
from benchmarks.lag_convergence import test_metrics, train
from lightning_gradsched.files import written_whole

LAG = "strategy.gradient_lag=1"
BF16 = "trainer.precision=bf16-mixed"
VARIANTS = {
    "gradsched, fp32": ["strategy=gradsched"],
    "ddp, fp32": ["strategy=ddp"],
    "gradsched, bf16": ["strategy=gradsched", BF16],
    "ddp, bf16": ["strategy=ddp", BF16],
    "gradsched, fp32, lag 1": ["strategy=gradsched", LAG],
}


def losses(path: Path) -> dict[int, float]:
    """``train/loss`` by step."""
    with path.open() as file:
        return {
            int(row["step"]): float(row["train/loss"])
            for row in csv.DictReader(file)
            if row.get("train/loss")
        }


def draw(runs: dict[str, Any], path: Path) -> None:
    """All curves in one picture."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axis = figure.subplots()
    for name, run in runs.items():
        style = "--" if name.startswith("ddp") else "-"
        steps = [int(step) for step in run["loss"]]
        axis.plot(steps, list(run["loss"].values()), style, label=name, alpha=0.8)
    axis.set(xlabel="step", ylabel="train/loss", title="climate_tiny, two ranks")
    axis.legend(frameon=False)
    FigureCanvasAgg(figure)
    with written_whole(path) as fresh:
        figure.savefig(fresh, dpi=120, format="png")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=160, help="optimizer steps of each run")
    parser.add_argument("--output", type=Path, help="write the JSON here (printed either way)")
    parser.add_argument("--picture", type=Path, help="write the curves here, as PNG")
    args = parser.parse_args()
    runs: dict[str, Any] = {}
    head = {"environment": describe_environment(), "steps": args.steps}
    with tempfile.TemporaryDirectory() as folder:
        for name, overrides in VARIANTS.items():
            run_dir = Path(folder, name.replace(", ", "_").replace(" ", ""))
            train("climate_tiny", [f"trainer.max_steps={args.steps}", *overrides], run_dir)
            path = run_dir / "csv" / "metrics.csv"
            runs[name] = {"loss": losses(path), **test_metrics(path)}
            shown = ", ".join(f"{k} {v:.4g}" for k, v in runs[name].items() if k != "loss")
            print(f"{name}: {shown}", flush=True)
            if args.output:  # as it goes: what is done stays if the rest is stopped
                write_json(args.output, {**head, "runs": runs})
            if args.picture:
                draw(runs, args.picture)


if __name__ == "__main__":
    main()

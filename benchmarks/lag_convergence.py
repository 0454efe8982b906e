"""What gradients of the step before do to training: zoo tasks with gradient_lag 0 and 1.

    python -m benchmarks.lag_convergence [--steps 200] [--seeds 0 1] [--output lag.json]

Each run is `python -m zoo.train` on two ranks, the same but for the lag and the learning rate.
What counts is the test metric after the same number of steps; nothing is timed.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from benchmarks.environment import describe_environment, write_json

# The learning rates that they come with.
EXPERIMENTS = {"super_resolution": 1e-3, "cbed_tiny": 2e-3}


class Variant(NamedTuple):
    lag: int
    rate: float  # of the experiment's own

    def __str__(self) -> str:
        return f"lag {self.lag}, rate x {self.rate:g}"


VARIANTS = tuple(Variant(lag, rate) for rate in (1.0, 0.5) for lag in (0, 1))


def run(
    experiment: str, variant: Variant, seed: int, n_steps: int, folder: Path
) -> dict[str, float]:
    """The test metrics of one training, by name."""
    run_dir = folder / f"{experiment}_lag{variant.lag}_rate{variant.rate}_seed{seed}"
    overrides = [
        f"seed={seed}",
        f"trainer.max_steps={n_steps}",
        f"strategy.gradient_lag={variant.lag}",
        f"optimizer.lr={variant.rate * EXPERIMENTS[experiment]}",
        # All runs by DDP's groups: no time goes into trials of plans.
        "strategy.planner=ddp",
    ]
    train(experiment, overrides, run_dir)
    return test_metrics(run_dir / "csv" / "metrics.csv")


def train(experiment: str, overrides: Sequence[str], run_dir: Path) -> None:
    """Run the experiment; what it prints goes beside ``run_dir``, to ``.log``."""
    command = [sys.executable, "-m", "zoo.train", f"experiment={experiment}"]
    command += [*overrides, f"hydra.run.dir={run_dir}"]
    with Path(f"{run_dir}.log").open("w") as log:
        result = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT)
    if result.returncode:
        said = Path(f"{run_dir}.log").read_text()[-2000:]
        raise SystemExit(f"{' '.join(command)} failed:\n{said}")


def test_metrics(path: Path) -> dict[str, float]:
    """The columns ``test/...`` of the last row that has any."""
    with path.open() as file:
        rows = [
            {name: float(text) for name, text in row.items() if name.startswith("test/") and text}
            for row in csv.DictReader(file)
        ]
    return next(row for row in reversed(rows) if row)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps of each run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--experiments", nargs="+", default=list(EXPERIMENTS), choices=EXPERIMENTS)
    parser.add_argument("--output", type=Path, help="write the JSON here (printed either way)")
    args = parser.parse_args()
    results: dict[str, Any] = {}
    head = {"environment": describe_environment(), "steps": args.steps}
    with tempfile.TemporaryDirectory() as folder:
        for experiment in args.experiments:
            by_variant = results[experiment] = {str(variant): [] for variant in VARIANTS}
            for seed, variant in product(args.seeds, VARIANTS):
                metrics = run(experiment, variant, seed, args.steps, Path(folder))
                by_variant[str(variant)].append({"seed": seed, **metrics})
                values = ", ".join(f"{name} {value:.5g}" for name, value in metrics.items())
                print(f"{experiment}, seed {seed}, {variant}: {values}", flush=True)
                if args.output:  # as it goes: what is done stays if the rest is stopped
                    write_json(args.output, {**head, **results})
    print(summary(results))
    if args.output:
        print(f"written to {args.output}")


def summary(results: dict[str, Any]) -> str:
    """Means over the seeds, a line a metric."""
    lines = [f"{'':<18} {'':<24}" + "".join(f"{variant!s:>19}" for variant in VARIANTS)]
    for experiment, by_variant in results.items():
        for name in by_variant[str(VARIANTS[0])][0]:
            if name != "seed":
                means = [mean(run[name] for run in runs) for runs in by_variant.values()]
                values = "".join(f"{value:19.5g}" for value in means)
                lines.append(f"{experiment:<18} {name:<24}{values}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

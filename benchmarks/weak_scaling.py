"""Weak scaling on one machine: 1 to 4 ranks, strategies ddp and gradsched, batch 8 a rank.

    python -m benchmarks.weak_scaling [--rounds 3] [--output benchmarks/results/weak_scaling.json]

Each cell is a training of `experiment=cbed_tiny` by Lightning, one thread a rank, in processes of
its own; what it yields is the throughput meter's windows. Cells take turns, round by round. The
efficiency is samples a second over those of one rank of the same strategy times the number of
ranks. More ranks than cores share them: then it says what sharing leaves, not how the strategy
scales.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from tqdm import tqdm

from benchmarks.environment import describe_environment, write_json
from benchmarks.rounds import in_turn

STRATEGIES = ("ddp", "gradsched")
RANKS = (1, 2, 3, 4)
TIMEOUT_S = 300


def run_cell(strategy: str, n_ranks: int, n_steps: int, folder: Path) -> list[float]:
    """Samples a second over all ranks, a number a window of the meter."""
    output = folder / f"{strategy}_{n_ranks}.json"
    command = [sys.executable, "-m", "benchmarks.weak_scaling_rank"]
    command += [strategy, str(n_ranks), str(n_steps), str(folder / "data"), str(output)]
    finished = subprocess.run(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    if finished.returncode != 0:
        raise RuntimeError(f"{strategy} on {n_ranks} ranks failed:\n{finished.stderr[-4000:]}")
    return list(json.loads(output.read_text()))


def summarise(samples_per_s: dict[tuple[str, int], list[float]]) -> list[dict[str, Any]]:
    """A row a cell: median and quartiles, and efficiency against one rank.

    >>> rows = summarise({("ddp", 1): [10.0, 10.0], ("ddp", 2): [15.0, 15.0]})
    >>> [row["efficiency"] for row in rows]
    [1.0, 0.75]
    """
    rows = []
    for (strategy, n_ranks), values in samples_per_s.items():
        low, middle, high = quantiles(values, n=4)
        one = median(samples_per_s[strategy, 1])
        rows.append(
            {
                "strategy": strategy,
                "n_ranks": n_ranks,
                "samples_per_s": middle,
                "samples_per_s_quartiles": [low, high],
                "efficiency": middle / (n_ranks * one),
                "windows": values,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60, help="of each training")
    parser.add_argument("--ranks", type=int, nargs="+", default=RANKS, help="1 must be among them")
    parser.add_argument("--output", type=Path, help="write the JSON here (printed either way)")
    options = parser.parse_args()
    if 1 not in options.ranks:
        parser.error(f"expected 1 among --ranks, the yardstick, got {options.ranks}")
    cells = {f"{s} {n}": (s, n) for n in options.ranks for s in STRATEGIES}
    values: dict[tuple[str, int], list[float]] = {cell: [] for cell in cells.values()}
    with tempfile.TemporaryDirectory() as folder, tqdm(total=options.rounds * len(cells)) as bar:
        for number in range(options.rounds):
            for name in in_turn(cells, number):
                bar.set_description(name)
                values[cells[name]] += run_cell(*cells[name], options.steps, Path(folder))
                bar.update()
    rows = summarise(values)
    for row in rows:
        low, high = row["samples_per_s_quartiles"]
        print(
            f"{row['strategy']:<10} {row['n_ranks']} rank(s) {row['samples_per_s']:8.1f} samples/s "
            f"({low:.1f} to {high:.1f})  efficiency {row['efficiency']:.2f}"
        )
    if options.output:
        note = f"ranks beyond {os.cpu_count()} share {os.cpu_count()} cores"
        environment = describe_environment() | {"note": note, "load_average": os.getloadavg()}
        write_json(options.output, {"environment": environment, "results": rows})
        print(f"written to {options.output}")


if __name__ == "__main__":
    main()

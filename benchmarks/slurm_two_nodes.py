"""Train the zoo under a real SLURM on two nodes with a slow link, and the same ranks on one node.

    python -m benchmarks.slurm_two_nodes [--output benchmarks/results/slurm_two_nodes.json]

Each node is a slurmd in a network namespace of its own, whose link is shaped (needs root and
Debian's packages slurm-wlm and munge). The weights must be equal bit by bit; both overlap reports
are kept.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks import links
from benchmarks.environment import describe_environment, write_json
from lightning_gradsched.trace import read_trace
from tests.slurm.cluster import Cluster, can_shape_links, missing
from tests.slurm.jobs import PYTHON, srun
from zoo.data.photograph_file import ensure_photographs

STEP_S = 1800
LAYOUTS = {"two nodes": 2, "one node": 1}


def main() -> None:
    args = _arguments()
    if reason := missing() or ("" if can_shape_links() else "no shaped links"):
        raise SystemExit(f"a SLURM with shaped links cannot be made here: {reason}")
    with Cluster(2, 2, with_links=True) as cluster:
        assert cluster.links is not None
        cluster.links.set_rate(args.rate)
        photographs = cluster.shared / "photographs.h5"
        ensure_photographs(photographs)
        runs = {}
        for number, (name, n_nodes) in enumerate(LAYOUTS.items(), start=1):
            print(
                f"[{number}/{len(LAYOUTS)}] {args.steps} steps of two ranks on {name}", flush=True
            )
            runs[name] = _train(cluster, n_nodes, photographs, args.steps)
    print(*(f"{name}:\n{run['table']}" for name, run in runs.items()), sep="\n")
    result = summed_up(runs) | {"rate_bit_per_s": args.rate, "n_steps": args.steps}
    print(f"weights equal bit by bit: {result['weights_equal']}")
    if args.output:
        made_by = f"tbf on network namespaces, made by {links.privileges()}"
        environment = {"environment": describe_environment(), "link": made_by}
        write_json(args.output, environment | result)
        print(f"written to {args.output}")
    sys.exit(not result["weights_equal"])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rate", type=float, default=1e8, help="of each node's link (1e8 bit/s)")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--output", type=Path, help="write the JSON here (reports are printed)")
    return parser.parse_args()


def _train(cluster: Cluster, n_nodes: int, photographs: Path, n_steps: int) -> dict[str, Any]:
    run_dir = cluster.shared / f"nodes_{n_nodes}"
    ended = srun(
        cluster,
        *(f"--nodes={n_nodes}", f"--ntasks-per-node={2 // n_nodes}", "--kill-on-bad-exit=1"),
        *(PYTHON, "-m", "zoo.train", "experiment=super_resolution", "strategy=gradsched"),
        *(f"trainer.devices={2 // n_nodes}", f"trainer.max_steps={n_steps}"),
        *(f"data.path={photographs}", f"hydra.run.dir={run_dir}"),
        *("strategy.record_every_n_steps=5", f"strategy.calibration_dir={run_dir}/links"),
        "trainer.enable_progress_bar=false",
        timeout_s=STEP_S,
    )
    if ended.code:
        raise SystemExit(ended.text)
    checkpoint = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    report = read_trace(run_dir / "gradsched_trace.json").report
    return {
        "weights": checkpoint["state_dict"],
        "report": report.to_dict(),
        "table": str(report),
    }


def summed_up(runs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The reports, and whether all runs ended with the same bits."""
    first, *others = (run["weights"] for run in runs.values())
    equal = all(
        first.keys() == other.keys() and all(torch.equal(first[k], other[k]) for k in first)
        for other in others
    )
    reports = {name: run["report"] for name, run in runs.items()}
    return {"weights_equal": equal, "reports": reports}


if __name__ == "__main__":
    main()

"""Requeue a job under a real SLURM again and again, with one slow rank; how many times it went on.

    python -m benchmarks.requeues [--times 20] [--output benchmarks/results/requeues.json]

Two ranks on two nodes, one of which takes six times as long over a batch. The job gets SIGUSR1, as
before its time limit, saves, is requeued and resumes. Every loss of every rank must be that of a
job that nobody disturbed. (Lightning's own handler, which saves inside the signal, hung in three
of four.) Needs root and Debian's packages slurm-wlm and munge.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from time import perf_counter

from benchmarks.environment import describe_environment, write_json
from tests.slurm.cluster import Cluster, can_shape_links, missing
from tests.slurm.disturbed import assert_undisturbed, diary, requeued, run_whole

STEPS_A_REQUEUE = 5


def main() -> None:
    args = _arguments()
    if reason := missing():
        raise SystemExit(f"a SLURM cannot be started here: {reason}")
    with Cluster(2, 2, with_links=can_shape_links()) as cluster:
        n_steps = STEPS_A_REQUEUE * (args.times + 1)
        print(f"{n_steps} steps undisturbed", flush=True)
        whole = run_whole(cluster, n_steps)
        folder = cluster.shared / "straggler"
        start_s = perf_counter()
        job = requeued(cluster, folder, args.times, n_steps)
        took_s = perf_counter() - start_s
        n_restarts = int(job.field("Restarts"))
        assert_undisturbed(folder, whole, args.times + 1, n_steps)
        n_steps_done = len(diary(folder))
    print(
        f"requeued {n_restarts} of {args.times} times in {took_s:.0f} s, {n_steps_done} steps done"
        f" for {n_steps}, losses and weights equal bit by bit"
    )
    if args.output:
        result = {
            "n_requeues": args.times,
            "n_resumed": n_restarts,
            "n_steps": n_steps,
            "n_steps_done": n_steps_done,
            "took_s": took_s,
        }
        write_json(args.output, {"environment": describe_environment(), **result})
        print(f"written to {args.output}")
    sys.exit(n_restarts != args.times)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--output", type=Path, help="write the JSON here")
    return parser.parse_args()


if __name__ == "__main__":
    main()

"""What it costs ranks to agree, once, which groups all of them have full.

    python -m benchmarks.control_plane [--quick] [--output benchmarks/results/control_plane.json]

Four ways in turn, on real gloo processes of one machine: bits (the engine's: readiness bits, ANDed
in rings of up to 8 ranks, ring after ring), ring (the same bits by gloo's own all-reduce), tree and
coordinator (lists of names, as in Kurth et al. 2018 and in Horovod). Ranks that share cores take
turns: there the time is that of all ranks' work together, and says nothing of a cluster. So each
rank's own work, messages and bytes are given too, and how many messages must follow one another.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import statistics
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.control_rivals import TIMEOUT_S, Traffic, Wire, make_ways, messages_in_a_row
from benchmarks.environment import describe_environment, write_json
from benchmarks.rounds import in_turn

N_RANKS = (2, 4, 8, 16, 32, 64)
N_GROUPS = (64, 256, 1024, 4096)
WARM_UP_ROUNDS = 2
Rows = list[dict[str, Any]]


def ready(rank: int, i: int, n_groups: int) -> int:
    """All groups but one, another one on each rank and in each round."""
    return (1 << n_groups) - 1 & ~(1 << (7 * rank + i) % n_groups)


def measure(rank: int, n_ranks: int, folder: str, n_groups: list[int], n_rounds: int) -> None:
    """One rank; writes what it took, round by round, to a file of its own."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        store=dist.FileStore(f"{folder}/store", n_ranks),
        rank=rank,
        world_size=n_ranks,
        timeout=timedelta(seconds=TIMEOUT_S),
    )
    wire, ways = make_ways()
    rows: Rows = []
    for count in n_groups:
        took = {name: _Took() for name in ways}
        for i in range(WARM_UP_ROUNDS + n_rounds):
            expected = (1 << count) - 1
            for other in range(n_ranks):
                expected &= ready(other, i, count)
            for name in in_turn(ways, i):
                dist.barrier()
                agreed = took[name].once(wire, lambda: ways[name](ready(rank, i, count), count))  # noqa: B023
                assert agreed == expected, (name, i)
        rows += [{"way": n, "n_groups": count, **t.row(WARM_UP_ROUNDS)} for n, t in took.items()]
    Path(folder, f"rank{rank}.json").write_text(json.dumps(rows))
    dist.barrier()
    dist.destroy_process_group()


class _Took:
    """What one way took of this rank: wall and CPU seconds (of all its threads), messages."""

    def __init__(self) -> None:
        self._wall_s: list[float] = []
        self._cpu_s: list[float] = []
        self._traffic = Traffic()

    def once(self, wire: Wire, agree: Any) -> int:
        wire.traffic = Traffic()
        cpu, wall = time.process_time(), time.perf_counter()
        agreed: int = agree()
        self._wall_s.append(time.perf_counter() - wall)
        self._cpu_s.append(time.process_time() - cpu)
        self._traffic = wire.traffic
        return agreed

    def row(self, n_warm_up: int) -> dict[str, Any]:
        return {
            "wall_s": self._wall_s[n_warm_up:],
            "cpu_s": statistics.mean(self._cpu_s[n_warm_up:]),
            "n_messages": self._traffic.n_messages,
            "nbytes": self._traffic.nbytes,
        }


def run(n_ranks: int, n_groups: list[int], n_rounds: int) -> Rows:
    """All ways on ``n_ranks`` fresh processes."""
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.control_rivals"])
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            context.Process(
                target=measure, args=(rank, n_ranks, folder, n_groups, n_rounds), daemon=True
            )
            for rank in range(n_ranks)
        ]
        for process in processes:
            process.start()
        for rank, process in enumerate(processes):
            process.join(4 * TIMEOUT_S)
            if process.exitcode != 0:
                raise SystemExit(
                    f"rank {rank} of {n_ranks} ended with {process.exitcode}, expected 0; its error"
                    " is above"
                )
        ranks = [
            json.loads(Path(folder, f"rank{rank}.json").read_text()) for rank in range(n_ranks)
        ]
    return [summarise(n_ranks, rows) for rows in zip(*ranks, strict=True)]


def summarise(n_ranks: int, rows: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    """One way at one size, ``rows`` by rank. A round takes as long as its slowest rank."""
    slowest = [max(times) for times in zip(*(row["wall_s"] for row in rows), strict=True)]
    low, middle, high = statistics.quantiles(slowest, n=4)
    nbytes = [row["nbytes"] for row in rows]
    return {
        "way": rows[0]["way"],
        "n_ranks": n_ranks,
        "n_groups": rows[0]["n_groups"],
        "median_ms": 1e3 * middle,
        "quartiles_ms": [1e3 * low, 1e3 * high],
        "cpu_ms_a_rank": 1e3 * statistics.mean(row["cpu_s"] for row in rows),
        "cpu_ms_busiest": 1e3 * max(row["cpu_s"] for row in rows),
        "nbytes_a_rank": statistics.mean(nbytes),
        "nbytes_busiest": max(nbytes),
        "busiest_share": max(nbytes) / sum(nbytes),
        "n_messages_busiest": max(row["n_messages"] for row in rows),
        "n_messages_in_a_row": messages_in_a_row(rows[0]["way"], n_ranks, rows[0]["n_groups"]),
    }


HEADER = (
    f"{'ranks':>5} {'groups':>6} {'way':<11} {'median ms (quartiles)':>24} {'CPU ms a rank':>13}"
    f" {'busiest':>8} {'kB a rank':>9} {'busiest':>8} {'share':>5} {'msgs':>5} {'in a row':>8}"
)


def line(row: dict[str, Any]) -> str:
    low, high = row["quartiles_ms"]
    times = f"{row['median_ms']:.2f} ({low:.2f} to {high:.2f})"
    return (
        f"{row['n_ranks']:>5} {row['n_groups']:>6} {row['way']:<11} {times:>24}"
        f" {row['cpu_ms_a_rank']:>13.2f} {row['cpu_ms_busiest']:>8.2f}"
        f" {row['nbytes_a_rank'] / 1e3:>9.2f} {row['nbytes_busiest'] / 1e3:>8.2f}"
        f" {row['busiest_share']:>5.0%} {row['n_messages_busiest']:>5}"
        f" {row['n_messages_in_a_row']:>8}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--ranks", type=int, nargs="+", default=N_RANKS, help="processes")
    parser.add_argument("--groups", type=int, nargs="+", default=N_GROUPS, help="groups")
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds of each way")
    parser.add_argument("--quick", action="store_true", help="2 to 8 processes, 5 rounds")
    parser.add_argument("--output", type=Path, help="write the JSON here (printed either way)")
    args = parser.parse_args()
    if args.quick:
        args.ranks, args.rounds = N_RANKS[:3], 5
    print(HEADER, flush=True)
    rows: Rows = []
    for n_ranks in args.ranks:
        rows += run(n_ranks, list(args.groups), args.rounds)
        for row in rows[-4 * len(args.groups) :]:
            print(line(row), flush=True)
    if args.output:
        write_json(args.output, {"environment": describe_environment(), "results": rows})
        print(f"written to {args.output}")


if __name__ == "__main__":
    main()

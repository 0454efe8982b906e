"""The all-reduce through the nodes beside the flat one, on links of a given rate between hosts.

    python -m benchmarks.hierarchical [--output benchmarks/results/hierarchical.json]   # 4 minutes

Each node is a network namespace with a shaped link into one bridge (needs root or user namespaces);
its ranks reach one another without it. Ranks are placed node by node, as launchers do, or in turn,
as `srun --distribution=cyclic` does. Both ways are timed in turn, in the same processes.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from benchmarks import links
from benchmarks.environment import describe_environment, write_json
from benchmarks.rounds import ratio
from lightning_gradsched import GradSchedConfig
from lightning_gradsched.core.profile import ALL_REDUCE, HIERARCHICAL_ALL_REDUCE
from lightning_gradsched.runtime.collectives import AllReduce, Collectives
from lightning_gradsched.runtime.hierarchical import HierarchicalAllReduce
from lightning_gradsched.runtime.reduction import Reduction

KIB, MIB = 2**10, 2**20
SIZES_NBYTES = (KIB, 64 * KIB, MIB, 4 * MIB, 16 * MIB)
# As a backward does it: the next group leaves before the last one has come.
STREAM_NBYTES, STREAM_GROUPS = 2 * MIB, 8
TIMEOUT_S = 120.0
CELL_TIMEOUT_S = 600


@dataclass(frozen=True)
class Cell:
    """Ranks on nodes whose links have a rate; None: as fast as this machine."""

    name: str
    node_of_rank: tuple[int, ...]
    rate_bit_per_s: float | None


def by_node(n_nodes: int, n_local: int) -> tuple[int, ...]:
    return tuple(node for node in range(n_nodes) for _ in range(n_local))


def in_turn(n_nodes: int, n_local: int) -> tuple[int, ...]:
    return tuple(range(n_nodes)) * n_local


def cells(rate_bit_per_s: float) -> list[Cell]:
    return [
        Cell("2 x 2, node by node", by_node(2, 2), rate_bit_per_s),
        Cell("2 x 2, in turn", in_turn(2, 2), rate_bit_per_s),
        Cell("2 x 4, node by node", by_node(2, 4), rate_bit_per_s),
        Cell("4 x 2, node by node", by_node(4, 2), rate_bit_per_s),
        # Eight ranks keep this machine's cores busy at the full rate.
        Cell("4 x 2, node by node, rate / 4", by_node(4, 2), rate_bit_per_s / 4),
        Cell("2 x 2, node by node, no limit", by_node(2, 2), None),
    ]


def main() -> None:
    if "RANK" in os.environ:
        measure_as_rank()
        return
    args = _arguments()
    links.become_root()
    rows = []
    chosen = cells(args.rate)
    for number, cell in enumerate(chosen, start=1):
        print(f"[{number}/{len(chosen)}] {cell.name}", flush=True)
        rows.append(_run(cell, args.rounds))
    print(as_markdown(rows))
    if args.output:
        made_by = f"tbf on network namespaces, made by {links.privileges()}"
        write_json(
            args.output, {"environment": describe_environment(), "link": made_by, "cells": rows}
        )
        print(f"written to {args.output}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rate", type=float, default=1e9, help="of each link, in bit/s (1e9)")
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds of each size")
    parser.add_argument("--output", type=Path, help="write the JSON here (a table is printed)")
    return parser.parse_args()


def as_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Median ms flat and through the nodes, and their ratio with its quartiles."""
    columns = ["nodes x ranks", "bytes", "flat ms", "hierarchical ms", "flat ÷ hierarchical"]
    columns += ["CPU ms", "auto"]
    lines = [f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|"]
    for row in rows:
        for what, times in row["times"].items():
            flat_s, hierarchical_s = times[ALL_REDUCE], times[HIERARCHICAL_ALL_REDUCE]
            middle, low, high = ratio(flat_s, hierarchical_s)
            cpu = [f"{1e3 * median(row['cpu'][what][way]):.0f}" for way in times]
            lines.append(
                f"| {row['cell']['name']} | {what} | {1e3 * median(flat_s):.1f}"
                f" | {1e3 * median(hierarchical_s):.1f} | {middle:.2f} ({low:.2f} to {high:.2f})"
                f" | {' and '.join(cpu)} | {row['chosen'][0]} |"
            )
    return "\n".join(lines)


def _run(cell: Cell, n_rounds: int) -> dict[str, Any]:
    variables = [
        {
            "ROUNDS": str(n_rounds),
            "GROUP_RANK": str(node),
            "LOCAL_WORLD_SIZE": str(cell.node_of_rank.count(node)),
        }
        for node in cell.node_of_rank
    ]
    with links.ShapedLinks(len(set(cell.node_of_rank)), cell.rate_bit_per_s) as hosts:
        module = ["benchmarks.hierarchical"]
        result = links.result_of_ranks(hosts, module, CELL_TIMEOUT_S, variables, cell.node_of_rank)
    return {"cell": asdict(cell), **result}


def measure_as_rank() -> None:
    """One rank of a cell: rank 0 writes what all have measured."""
    torch.set_num_threads(1)
    if links.privileges() == "root":
        # Ranks share this machine's cores: the default scheduler lets them wait up to 7 ms.
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    dist.init_process_group("gloo")
    collectives = Collectives(None, torch.device("cpu"), TIMEOUT_S)
    chosen, node_of_rank = _choice(collectives), _nodes(collectives)
    hierarchical = HierarchicalAllReduce(collectives, node_of_rank, TIMEOUT_S)
    ways = {ALL_REDUCE: collectives, HIERARCHICAL_ALL_REDUCE: hierarchical}
    times, cpu = {}, {}
    for what, groups in _messages().items():
        times[what], cpu[what] = _in_turn(ways, groups, collectives)
    if collectives.rank == 0:
        write_json(links.result_path(), {"times": times, "cpu": cpu, "chosen": chosen})
    hierarchical.close()
    collectives.close()
    dist.destroy_process_group()


def _choice(collectives: Collectives) -> tuple[str, str]:
    """What ``reduction="auto"`` takes for 16 MiB of parameters, and why."""
    model = nn.Linear(4096, 1024, bias=False)
    config = GradSchedConfig(reduction="auto")
    reduction = Reduction(model, config, collectives, measures=True)
    reduction.close()
    return reduction.name, reduction.why


def _nodes(collectives: Collectives) -> list[int]:
    nodes: list[int] = collectives.gather(int(os.environ["GROUP_RANK"]))
    return nodes


def _messages() -> dict[str, list[torch.Tensor]]:
    """Groups that are under way at once, by name."""
    messages = {
        f"{n // MIB} MiB" if n >= MIB else f"{n // KIB} KiB": [torch.zeros(n // 4)]
        for n in SIZES_NBYTES
    }
    stream = [torch.zeros(STREAM_NBYTES // 4) for _ in range(STREAM_GROUPS)]
    return messages | {f"{STREAM_GROUPS} groups of {STREAM_NBYTES // MIB} MiB": stream}


def _in_turn(
    ways: dict[str, AllReduce], groups: list[torch.Tensor], collectives: Collectives
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds of each round by the slowest rank, and CPU seconds of all ranks, for each way."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(1 + int(os.environ["ROUNDS"])):
        for name, way in ways.items():
            seconds, cpu_s = _timed(way, groups, collectives)
            if number > 0:  # the first warms up
                times[name].append(_over_ranks(collectives.max, seconds))
                cpu[name].append(_over_ranks(collectives.sum, cpu_s))
    return times, cpu


def _timed(
    way: AllReduce, groups: list[torch.Tensor], collectives: Collectives
) -> tuple[float, float]:
    collectives.min_and_max(0)
    start_s, cpu_start_s = perf_counter(), process_time()
    for work in [way.all_reduce(group) for group in groups]:
        work.wait()
    return perf_counter() - start_s, process_time() - cpu_start_s


def _over_ranks(reduce: Callable[[list[int]], list[int]], seconds: float) -> float:
    (ns,) = reduce([int(1e9 * seconds)])
    return 1e-9 * ns


if __name__ == "__main__":
    main()

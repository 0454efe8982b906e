"""Step overhead on one machine: gradsched beside DDP, in turn, in one run of two ranks.

    python -m benchmarks.overhead [--steps 200] [--output benchmarks/results/overhead.json]

Nothing is gained here: the link is this machine's own memory. What counts is that the engine's
hooks, written in Python, cost no more than DDP's in C++, and what it costs to be safe: gradsched's
step beside that of the same groups by bare hooks (benchmarks/plain_static.py).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.environment import describe_environment, write_json
from benchmarks.plain_static import PlainStatic
from benchmarks.rounds import ratio, time_in_turn, timed
from lightning_gradsched import GradientScheduler, GradSchedConfig
from zoo.net.edsr import EDSR

N_RANKS = 2
WARMUP_STEPS = 10
Step = Callable[[], None]


def many_small() -> tuple[nn.Module, Tensor]:
    """1,000 parameters of 16 to 256 numbers: as many hooks a second as a model can ask for."""
    layers = [nn.Sequential(nn.Linear(16, 16), nn.ReLU()) for _ in range(500)]
    return nn.Sequential(*layers), torch.randn(8, 16)


def edsr() -> tuple[nn.Module, Tensor]:
    """The zoo's super-resolution net at the size and batch of ``make demo``."""
    return EDSR(channels=24, blocks=4, scale=2), torch.rand(8, 3, 24, 24)


NETS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {"many_small": many_small, "edsr": edsr}


def ddp(net: nn.Module, x: Tensor) -> Step:
    return _step(net, DistributedDataParallel(net), x)


def ddp_find_unused(net: nn.Module, x: Tensor) -> Step:
    return _step(net, DistributedDataParallel(net, find_unused_parameters=True), x)


def gradsched(net: nn.Module, x: Tensor, **settings: Any) -> Step:
    # Kept by the hooks that it puts on the net.
    GradientScheduler(net, GradSchedConfig(planner="ddp", **settings))
    return _step(net, net, x)


def plain_static(net: nn.Module, x: Tensor) -> Step:
    planned = deepcopy(net)
    scheduler = GradientScheduler(planned, GradSchedConfig(planner="ddp"))
    planned(x).square().mean().backward()
    assert scheduler.plan is not None
    groups = scheduler.plan.groups
    scheduler.detach()
    PlainStatic(net, groups)
    return _step(net, net, x)


RIVALS: dict[str, Callable[[nn.Module, Tensor], Step]] = {
    "ddp": ddp,
    "plain_static": plain_static,
    "gradsched": gradsched,
    "gradsched_auto": partial(gradsched, schedule="auto"),
    "ddp_find_unused": ddp_find_unused,
}


def _step(net: nn.Module, forward: nn.Module, x: Tensor) -> Step:
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        forward(x).square().mean().backward()
        optimizer.step()

    return step


def summarise(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Medians in ms; ratios to DDP and to the plain schedule in the same round."""
    out: dict[str, Any] = {}
    for name, values in seconds.items():
        out[name] = {
            "median_ms": statistics.median(values) * 1e3,
            "ratio_to_ddp": ratio(values, seconds["ddp"])._asdict(),
            "ratio_to_plain_static": ratio(values, seconds["plain_static"])._asdict(),
        }
    return out


def measure(rank: int, folder: str, n_rounds: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        store=dist.FileStore(f"{folder}/store", N_RANKS),
        rank=rank,
        world_size=N_RANKS,
    )
    results: dict[str, Any] = {}
    for net_name, make in NETS.items():
        torch.manual_seed(0)
        net, x = make()
        steps = {name: timed(rival(deepcopy(net), x)) for name, rival in RIVALS.items()}
        time_in_turn(steps, range(WARMUP_STEPS))
        results[net_name] = summarise(time_in_turn(steps, range(n_rounds)))
    if rank == 0:
        write_json(Path(folder, "results.json"), results)
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=300, help="timed steps of each rival")
    parser.add_argument("--output", type=Path, help="write the JSON here (printed either way)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(measure, args=(folder, args.steps), nprocs=N_RANKS)
        results = json.loads(Path(folder, "results.json").read_text())
    for net, rivals in results.items():
        for name, row in rivals.items():
            ratios = [
                "{middle:.3f} ({low:.3f} to {high:.3f})".format(**row[f"ratio_to_{other}"])
                for other in ("ddp", "plain_static")
            ]
            print(
                f"{net:<11} {name:<16} {row['median_ms']:7.2f} ms"
                f"   {ratios[0]} x ddp   {ratios[1]} x plain_static"
            )
    if args.output:
        write_json(args.output, {"environment": describe_environment(), "results": results})
        print(f"written to {args.output}")


if __name__ == "__main__":
    main()

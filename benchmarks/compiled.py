"""Step time of a compiled net: cut at the plan's groups, by DDP's own splitting, and left whole.

    python -m benchmarks.compiled [--output benchmarks/results/compiled.json]   # 10 minutes
    python -m benchmarks.compiled --net layers --rates 1e9 --output …           # 3 minutes

Two hosts (network namespaces) with shaped links (needs root or user namespaces), one rank each. A
transformer's encoder computes for real, as inductor has compiled it, on the cores that also move
the bytes; layers that sleep in operators of their own, as in ``emulation.py``, leave the cores
free, as a device would. The ways run in turn, step by step, in the same processes; ratios are taken
within a round.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter, sleep
from types import FunctionType
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks import links
from benchmarks.emulation import sleep_precisely
from benchmarks.environment import describe_environment, write_json
from benchmarks.rounds import ratio, time_in_turn
from lightning_gradsched import GradientScheduler, GradSchedConfig
from lightning_gradsched.runtime.graph import COMPILED

WIDTH, BLOCKS, BATCH, LENGTH = 256, 6, 8, 64
DDP_CAPS_MIB = (1, 2, 5, 10)
OURS, WHOLE, ALONE, DDP_DEFAULT = "gradsched", "gradsched, not cut", "no reduction", "DDP default"
MOST_WARM_UP_STEPS = 60
TIMEOUT_S = 1800


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.attend, self.project = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.attend(self.norms[0](x)).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*heads.unbind(0)).transpose(1, 2).flatten(2)
        x = x + self.project(mixed)
        return x + self.down(F.gelu(self.up(self.norms[1](x))))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.head = nn.Linear(WIDTH, 16)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


SLEPT_LAYERS, SLEPT_NUMEL, SLEPT_S = 24, 1 << 18, 0.004


@torch.library.custom_op("gradsched_bench::layer", mutates_args=())
def layer(x: Tensor, weight: Tensor) -> Tensor:
    sleep(SLEPT_S)
    return x.clone()


@torch.library.custom_op("gradsched_bench::layer_backward", mutates_args=())
def layer_backward(grad: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    sleep(2 * SLEPT_S)
    return grad.clone(), torch.ones_like(weight)


@layer.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return torch.empty_like(x)


@layer_backward.register_fake
def _(grad: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(grad), torch.empty_like(weight)


layer.register_autograd(
    lambda ctx, grad: layer_backward(grad, *ctx.saved_tensors),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[1]),
)


class Layers(nn.Module):
    """A megabyte each, all alike, at a third of the compute in forward."""

    def __init__(self) -> None:
        super().__init__()
        weights = (nn.Parameter(torch.zeros(SLEPT_NUMEL)) for _ in range(SLEPT_LAYERS))
        self.weights = nn.ParameterList(weights)

    def forward(self, x: Tensor) -> Tensor:
        for weight in self.weights:
            x = layer(x, weight)
        return x


NETS: dict[str, type[nn.Module]] = {"encoder": Encoder, "layers": Layers}
# Nothing of theirs is worth machine code.
BACKENDS = {"encoder": "inductor", "layers": "aot_eager"}


class Way(NamedTuple):
    step: Callable[[], None]
    n_nodes: Callable[[], int]  # compiled ones in a backward
    scheduler: GradientScheduler | None = None


def net_number(number: int) -> nn.Module:
    """Alike for all, of a class with code of its own, to which torch keeps the compiled graphs."""
    kind: Any = NETS[os.environ["NET"]]
    code = kind.forward.__code__.replace(co_name=f"forward_{number}")
    forward = FunctionType(code, kind.forward.__globals__)
    torch.manual_seed(0)
    made: nn.Module = type(f"{kind.__name__}{number}", (kind,), {"forward": forward})()
    return made


def compiled(net: nn.Module) -> Any:
    return torch.compile(net, backend=BACKENDS[os.environ["NET"]])


def way(net: nn.Module, run: Any, scheduler: GradientScheduler | None = None) -> Way:
    # Layers without any input that needs gradients would have no backward between them.
    x = torch.randn(BATCH, LENGTH, WIDTH, requires_grad=os.environ["NET"] == "layers")

    def loss() -> Tensor:
        value: Tensor = run(x).square().mean()
        return value

    def step() -> None:
        net.zero_grad()
        loss().backward()

    def n_nodes() -> int:
        todo, seen = [loss().grad_fn], set()
        while todo:
            node = todo.pop()
            if node is not None and node not in seen:
                seen.add(node)
                todo.extend(producer for producer, _ in node.next_functions)
        return sum(node.name() == COMPILED for node in seen)

    return Way(step, n_nodes, scheduler)


def scheduled(net: nn.Module) -> Way:
    run = compiled(net)
    return way(net, run, GradientScheduler(run, GradSchedConfig(record_every_n_steps=0)))


def not_cut(net: nn.Module) -> Way:
    """Compiled before there is an engine."""
    run = compiled(net)
    way(net, run).step()
    return way(net, run, GradientScheduler(run, GradSchedConfig(record_every_n_steps=0)))


def alone(net: nn.Module) -> Way:
    return way(net, compiled(net))


def ddp(**options: Any) -> Callable[[nn.Module], Way]:
    def make(net: nn.Module) -> Way:
        return way(net, compiled(DistributedDataParallel(net, **options)))

    return make


WAYS: dict[str, Callable[[nn.Module], Way]] = {
    ALONE: alone,
    DDP_DEFAULT: ddp(),
    **{
        f"DDP {mib} MiB": ddp(bucket_cap_mb=mib, gradient_as_bucket_view=True)
        for mib in DDP_CAPS_MIB
    },
    WHOLE: not_cut,
    OURS: scheduled,
}


def main() -> None:
    if "RANK" in os.environ:
        measure_as_rank()
        return
    args = _arguments()
    links.become_root()
    cells = [run_cell(args.net, rate, args.rounds) for rate in args.rates]
    print(as_markdown(cells))
    if args.output:
        made_by = f"tbf on network namespaces, made by {links.privileges()}"
        result = {"environment": describe_environment(), "link": made_by, "cells": cells}
        write_json(args.output, result)
        print(f"written to {args.output}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--rates", type=float, nargs="+", default=[1e9, 2e9], help="of the links, in bit/s"
    )
    parser.add_argument("--net", choices=NETS, default="encoder")
    parser.add_argument("--rounds", type=int, default=20, help="timed rounds at each rate")
    parser.add_argument("--output", type=Path, help="write the JSON here (a table is printed)")
    return parser.parse_args()


def as_markdown(cells: list[dict[str, Any]]) -> str:
    """Median ms of a step, and gradsched's ratio to it with its quartiles, by rate and way."""
    lines = ["| link | way | pieces of backward | step, ms | gradsched ÷ it |", "|" + " --- |" * 5]
    for cell in cells:
        seconds = cell["seconds"]
        for name, values in seconds.items():
            middle, low, high = ratio(seconds[OURS], values)
            versus = f"{middle:.3f} ({low:.3f} to {high:.3f})" if name != OURS else ""
            lines.append(
                f"| {1e-9 * cell['rate_bit_per_s']:g} Gbit/s | {name} | {cell['n_nodes'][name]}"
                f" | {1e3 * median(values):.0f} | {versus} |"
            )
    return "\n".join(lines)


def run_cell(net: str, rate_bit_per_s: float, n_rounds: int) -> dict[str, Any]:
    with links.ShapedLinks(2, rate_bit_per_s) as hosts:
        variables = [{"ROUNDS": str(n_rounds), "NET": net}] * 2
        result = links.result_of_ranks(hosts, ["benchmarks.compiled"], TIMEOUT_S, variables)
    return {"net": net, "rate_bit_per_s": rate_bit_per_s, **result}


def measure_as_rank() -> None:
    """One rank of two: rank 0 writes what the slower of them has measured."""
    torch.set_num_threads(1)
    sleep_precisely()
    dist.init_process_group("gloo")
    ways, set_up_s = {}, {}
    for number, (name, make) in enumerate(WAYS.items()):
        start_s = perf_counter()
        ways[name] = make(net_number(number))
        _warm_up(ways[name])
        set_up_s[name] = perf_counter() - start_s
    n_nodes = {name: way.n_nodes() for name, way in ways.items()}
    _prefer_all_threads()
    dist.barrier()
    load = os.getloadavg()[0]
    seconds = time_in_turn(
        {name: way.step for name, way in ways.items()}, range(int(os.environ["ROUNDS"]))
    )
    if dist.get_rank() == 0:
        print({name: round(value, 1) for name, value in set_up_s.items()}, flush=True)
    result = {
        "seconds": {name: _slowest(values) for name, values in seconds.items()},
        "n_nodes": n_nodes,
        "set_up_s": set_up_s,
        "load_average_before": load,
        "n_bytes": sum(p.nbytes for p in net_number(0).parameters()),
        "groups": {n: way.scheduler.plan.groups for n, way in ways.items() if way.scheduler},
        "planner": {n: way.scheduler.plan.planner for n, way in ways.items() if way.scheduler},
    }
    if dist.get_rank() == 0:
        write_json(links.result_path(), result)
    dist.destroy_process_group()


def _warm_up(way: Way) -> None:
    """Until all is compiled, and a scheduler's plan has been tried, kept and followed."""
    n_steps = 0
    while n_steps < 3 or (way.scheduler and not way.scheduler.tried):
        way.step()
        n_steps += 1
        if n_steps > MOST_WARM_UP_STEPS:
            raise SystemExit(f"no plan was kept after {n_steps} steps")
    for _ in range(3):
        way.step()


def _prefer_all_threads() -> None:
    """Ranks share this machine's cores: the default scheduler lets them wait up to 7 ms."""
    if links.privileges() != "root":
        return
    for thread in os.listdir("/proc/self/task"):
        os.sched_setscheduler(int(thread), os.SCHED_RR, os.sched_param(1))


def _slowest(seconds: list[float]) -> list[float]:
    values = torch.tensor(seconds, dtype=torch.float64)
    dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return list(values.tolist())


if __name__ == "__main__":
    main()

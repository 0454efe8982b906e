"""One rank of ``benchmarks.scatter``: started by it, once for each host."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from time import perf_counter
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks import links
from benchmarks.emulation import EmulatedNet, sleep_precisely
from benchmarks.environment import write_json
from benchmarks.rivals import MOST_PLANNING_STEPS, NoUpdate, tell_the_device
from benchmarks.rounds import all_reduce_s, slowest, time_in_turn, timed
from benchmarks.scatter import DDP, HALVES, WAITS, WHOLE
from benchmarks.tables import TABLES
from lightning_gradsched import GradientScheduler, GradSchedConfig
from lightning_gradsched.runtime.collectives import Collectives
from lightning_gradsched.runtime.transport import Works

KIB, MIB = 2**10, 2**20
SIZES_NBYTES = (64 * KIB, MIB, 4 * MIB, 16 * MIB)
STREAM_NBYTES, STREAM_GROUPS = 2 * MIB, 8
TIMEOUT_S = 120.0
# Steps go on into one another: after a first one so many are timed in a turn.
STEPS_A_TURN = 3


def main() -> None:
    what, n_rounds = sys.argv[1], int(sys.argv[2])
    torch.set_num_threads(1)
    if links.privileges() == "root":
        # Ranks share this machine's cores: the default scheduler lets them wait up to 7 ms.
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    dist.init_process_group("gloo")
    result = collectives(n_rounds) if what == "collectives" else steps(what, n_rounds)
    if dist.get_rank() == 0:
        write_json(links.result_path(), result)
    dist.destroy_process_group()


def collectives(n_rounds: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of each way to reduce messages that are under way at once, by round."""
    messages = {
        f"{n // MIB} MiB" if n >= MIB else f"{n // KIB} KiB": [Message(n // 4)]
        for n in SIZES_NBYTES
    }
    stream = [Message(STREAM_NBYTES // 4) for _ in range(STREAM_GROUPS)]
    messages[f"{STREAM_GROUPS} groups of {STREAM_NBYTES // MIB} MiB"] = stream
    _engine()
    result = {}
    for what, group in messages.items():
        turns = {name: timed(_turn(way, group)) for name, way in WAYS.items()}
        time_in_turn(turns, range(1))
        seconds = time_in_turn(turns, range(n_rounds))
        result[what] = {name: slowest(seconds[name]) for name in WAYS}
    _engine().close()
    return result


class Message:
    """As many elements on all ranks, and room for a part of each rank's."""

    def __init__(self, numel: int) -> None:
        self.flat, self.parts = torch.zeros(numel), torch.zeros(numel)
        self.half, self.part = torch.zeros(numel // 2), torch.zeros(numel // dist.get_world_size())


Begin = Callable[[Message], tuple[Any, Callable[[], object]]]


def _nothing() -> None:
    pass


def _in_pieces_and_sum(message: Message) -> tuple[Any, Callable[[], object]]:
    """As the engine does it."""
    numels = [message.part.numel()] * dist.get_world_size()
    works = _engine().begin_all_to_all(message.parts, message.flat, numels, numels)
    return Works(works), lambda: torch.add(*message.parts.chunk(2), out=message.part)


@cache
def _engine() -> Collectives:
    return Collectives(None, torch.device("cpu"), TIMEOUT_S)


def _all_to_all_and_sum(message: Message) -> tuple[Any, Callable[[], object]]:
    work = dist.all_to_all_single(message.parts, message.flat, async_op=True)
    parts = message.parts.view(dist.get_world_size(), -1)
    return work, lambda: torch.add(parts[0], parts[1], out=message.part)


# Each begins, and gives the work and what is to be done when it has ended.
WAYS: dict[str, Begin] = {
    WHOLE: lambda m: (dist.all_reduce(m.flat, async_op=True), _nothing),
    "half an all-reduce": lambda m: (dist.all_reduce(m.half, async_op=True), _nothing),
    "gloo's reduce-scatter": lambda m: (
        dist.reduce_scatter_single(m.part, m.flat, async_op=True),
        _nothing,
    ),
    "all-to-all and a local sum": _all_to_all_and_sum,
    "the same in pieces": _in_pieces_and_sum,
    "gloo's all-gather": lambda m: (
        dist.all_gather_single(m.flat, m.part, async_op=True),
        _nothing,
    ),
}


def _turn(begin: Begin, group: list[Message]) -> Callable[[], None]:
    def turn() -> None:
        for work, then in [begin(message) for message in group]:
            work.wait()
            then()

    return turn


def steps(net_name: str, n_rounds: int) -> dict[str, Any]:
    """Seconds of a step that clips, of each rival, by round, at communication ÷ compute of 1."""
    sleep_precisely()
    table = TABLES[net_name]()
    net, x = EmulatedNet(table.layers, table.dtype), torch.ones(1, requires_grad=True)
    comm_s = all_reduce_s(table.nbytes // table.dtype.itemsize)
    net.set_compute(comm_s)
    turns: dict[str, Callable[[], float]] = {}
    accounts: dict[str, Any] = {}
    for name, scatters in ((HALVES, True), (WAITS, False), (DDP, None)):
        twin = deepcopy(net)
        twin.share_memory_of(net)
        turns[name], scheduler = _rival(twin, x, scatters)
        if scheduler is not None and scheduler.plan is not None:
            predicted = scheduler.predicted
            accounts[name] = {
                "planner": scheduler.plan.planner,
                "n_groups": len(scheduler.plan.groups),
                "owners": scheduler.plan.owners,
                "tried": [tried._asdict() for tried in scheduler.tried],
                "predicted_step_s": predicted.extent_s() if predicted is not None else None,
            }
    time_in_turn(turns, range(1))
    seconds = time_in_turn(turns, range(n_rounds))
    return {
        "nbytes": table.nbytes,
        "comm_s": comm_s,
        "steps_a_turn": STEPS_A_TURN,
        "rivals": {name: slowest(values) for name, values in seconds.items()},
        "gradsched": accounts,
    }


def _rival(
    net: nn.Module, x: Tensor, scatters: bool | None
) -> tuple[Callable[[], float], GradientScheduler | None]:
    """A turn of it; of DDP's where ``scatters`` is None."""
    if scatters is None:
        ddp = DistributedDataParallel(net, gradient_as_bucket_view=True)
        return _steps(net, ddp, x, NoUpdate(net.parameters()), _nothing), None
    config = GradSchedConfig(
        overlap_forward=True,
        scatter_gradients=scatters,
        per_parameter_optimizers=("NoUpdate",),
    )
    scheduler = GradientScheduler(net, config)
    tell_the_device(scheduler._launches.open_groups, lambda work, _bucket: work)
    optimizer = NoUpdate(net.parameters())
    scheduler.overlap(optimizer)
    turn = _steps(net, net, x, optimizer, scheduler.flush)
    for _ in range(MOST_PLANNING_STEPS // (1 + STEPS_A_TURN)):
        if not scheduler.tried:
            turn()
    turn()  # lays out the buckets of the plan that was kept
    return turn, scheduler


def _steps(
    net: nn.Module,
    forward: nn.Module,
    x: Tensor,
    optimizer: torch.optim.Optimizer,
    finish: Callable[[], None],
) -> Callable[[], float]:
    """Returns the seconds of one step, the mean of some."""

    def step() -> None:
        optimizer.zero_grad()
        forward(x).sum().backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()

    def turn() -> float:
        step()
        start_s = perf_counter()
        for _ in range(STEPS_A_TURN):
            step()
        seconds = (perf_counter() - start_s) / STEPS_A_TURN
        finish()
        return seconds

    return turn


if __name__ == "__main__":
    main()

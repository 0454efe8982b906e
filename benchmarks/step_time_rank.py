"""One rank of one cell of ``benchmarks.step_time``: started by it, once for each host."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.emulation import EmulatedNet, sleep_precisely
from benchmarks.environment import write_json
from benchmarks.rivals import MODES, RIVALS, Rival
from benchmarks.rounds import all_reduce_s, slowest, time_in_turn
from benchmarks.tables import TABLES
from lightning_gradsched import GradientScheduler
from zoo.net.edsr import EDSR

LEAST_ROUNDS = 4  # however long a step takes
# Where a rival's steps go on into one another, a turn is so many of them after two that are not
# timed: they leave under way what each of them finds under way. With a lag the first does not yet:
# it has waited for nothing.
STEPS_A_TURN = 3
UNTIMED_STEPS = 2


@dataclass(frozen=True)
class Cell:
    """One net at one ratio of communication to compute.

    ``ratio`` sets the compute of an emulated net; a real one takes what it takes, and is measured
    without a reduction only, where ``ratio`` is None.
    """

    net: str
    ratio: float | None
    rivals: tuple[str, ...]
    most_rounds: int
    budget_s: float
    n_ranks: int
    realtime: bool
    folder: str

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Cell:
        value = json.loads(text)
        return cls(**{**value, "rivals": tuple(value["rivals"])})


def edsr() -> tuple[nn.Module, Tensor]:
    """The zoo's super-resolution net in its published baseline size (Lim et al. 2017)."""
    return EDSR(channels=64, blocks=16, scale=2), torch.rand(2, 3, 32, 32)


REAL_NETS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {"edsr": edsr}


def main() -> None:
    cell = Cell.from_json(sys.argv[1])
    torch.set_num_threads(1)
    if cell.realtime:
        # Ranks share this machine's cores: the default scheduler lets them wait up to 7 ms.
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    dist.init_process_group("gloo")
    result = _measure(cell)
    if dist.get_rank() == 0:
        write_json(Path(cell.folder, "ranks.json"), result)
    dist.destroy_process_group()


def _measure(cell: Cell) -> dict[str, Any]:
    torch.manual_seed(0)
    net, x = _net(cell.net)
    nbytes = sum(p.nbytes for p in net.parameters())
    comm_s = all_reduce_s(sum(p.numel() for p in net.parameters()), next(net.parameters()).dtype)
    if isinstance(net, EmulatedNet) and cell.ratio is not None:
        net.set_compute(comm_s / cell.ratio)
    rivals: dict[str, Rival] = {}
    set_up_s: dict[str, list[float]] = {}
    for name in tqdm(cell.rivals, desc="warm-up", leave=False, disable=_no_bar()):
        start_s = perf_counter()
        rivals[name] = RIVALS[name](_copy_of(net), x)
        set_up_s[name] = [perf_counter() - start_s, *_warm_up(rivals[name])]
    seconds = _in_turn(rivals, cell)
    accounts = {n: _account(r.scheduler) for n, r in rivals.items() if r.scheduler is not None}
    return {
        "nbytes": nbytes,
        "n_params": len(list(net.parameters())),
        "comm_s": comm_s,
        "rivals": {name: slowest(values) for name, values in seconds.items()},
        "set_up_s": set_up_s,
        "steps_a_turn": _steps_a_turn(rivals),
        **accounts,
    }


def _net(name: str) -> tuple[nn.Module, Tensor]:
    if name in REAL_NETS:
        return REAL_NETS[name]()
    sleep_precisely()
    table = TABLES[name]()
    return EmulatedNet(table.layers, table.dtype), torch.ones(1, requires_grad=True)


def _copy_of(net: nn.Module) -> nn.Module:
    if not isinstance(net, EmulatedNet):
        return deepcopy(net)
    twin = deepcopy(net)
    twin.share_memory_of(net)
    return twin


def _no_bar() -> bool | None:
    """Rank 0 shows one, on a terminal."""
    return None if dist.get_rank() == 0 else True


def _warm_up(rival: Rival) -> list[float]:
    """Seconds of each step until the rival is as it will be: a scheduler's plan has been tried."""
    seconds = []
    while len(seconds) < rival.warm_up_steps and not (rival.scheduler and rival.scheduler.tried):
        start_s = perf_counter()
        rival.step()
        seconds.append(perf_counter() - start_s)
    if rival.scheduler is not None:
        rival.step()  # lays out the buckets of the plan that was kept
    rival.finish()
    return seconds


def _in_turn(rivals: dict[str, Rival], cell: Cell) -> dict[str, list[float]]:
    """Seconds of each rival's step by round, for as many rounds as the cell's budget holds."""
    n_steps = _steps_a_turn(rivals)
    turns = {name: _turn(rival, n_steps) for name, rival in rivals.items()}
    start_s = perf_counter()
    for turn in turns.values():
        turn()
    (round_s,) = slowest([perf_counter() - start_s])
    n_rounds = min(max(int(cell.budget_s / round_s), LEAST_ROUNDS), cell.most_rounds)
    rounds = tqdm(range(n_rounds), desc="rounds", leave=False, disable=_no_bar())
    return time_in_turn(turns, rounds)


def _steps_a_turn(rivals: dict[str, Rival]) -> int:
    return STEPS_A_TURN if MODES.keys() & rivals.keys() else 1


def _turn(rival: Rival, n_steps: int) -> Callable[[], float]:
    """Returns the seconds of one step, the mean of ``n_steps``."""

    def turn() -> float:
        for _ in range(UNTIMED_STEPS if n_steps > 1 else 0):
            rival.step()
        start_s = perf_counter()
        for _ in range(n_steps):
            rival.step()
        seconds = (perf_counter() - start_s) / n_steps
        rival.finish()
        return seconds

    return turn


def _account(scheduler: GradientScheduler) -> dict[str, Any]:
    """What the engine measured, tried and expects, for the record and for the simulations."""
    assert scheduler.plan is not None
    assert scheduler.profile is not None
    assert scheduler.network is not None
    return {
        "planner": scheduler.plan.planner,
        "groups": scheduler.plan.groups,
        "launches": scheduler.plan.launches,
        "ends_with_backward": scheduler.plan.ends_with_backward,
        "tried": [tried._asdict() for tried in scheduler.tried],
        "backward_profile": json.loads(scheduler.profile.to_json()),
        "network_profile": json.loads(scheduler.network.to_json()),
    }


if __name__ == "__main__":
    main()

"""The negotiated schedule on real ranks; the control thread alone: test_negotiation.py."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from lightning_gradsched import GradientScheduler, GradSchedConfig
from lightning_gradsched.errors import ReductionError
from tests.parity.nets import WIDTH, DirectAndReentrant
from tests.parity.reference import average_gradients
from tests.ranks import errors_of_ranks, run_ranks, tell, until_told


class Routed(nn.Module):
    """Layers of unlike sizes, applied in the order that a forward asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(
            {
                name: nn.Sequential(
                    nn.Linear(WIDTH, n, bias=False), nn.Linear(n, WIDTH, bias=False)
                )
                for name, n in zip("abcd", (2, 3, 4, 5), strict=True)
            }
        )

    def forward(self, x: Tensor, route: str) -> Tensor:
        for name in route:
            x = x + torch.tanh(self.layers[name](x))
        return x


class BackwardError(RuntimeError):
    pass


def config(schedule: str, **fields: Any) -> GradSchedConfig:
    return GradSchedConfig(planner="per_tensor", schedule=schedule, **fields)


def watch_launches(scheduler: GradientScheduler) -> list[int]:
    """The sizes of what is launched from now on, in order."""
    sizes: list[int] = []
    network = scheduler._collectives
    begin = network.all_reduce

    def all_reduce(flat: Tensor) -> Any:
        sizes.append(flat.numel())
        return begin(flat)

    network.all_reduce = all_reduce  # type: ignore[method-assign]
    return sizes


def batch(rank: int, step: int) -> Tensor:
    return torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(10 * step + rank))


def run_steps(rank: int, net: nn.Module, routes: list[tuple[str, ...]]) -> list[bool]:
    """Whether the gradients of each step are those of the slow reference, bit by bit."""
    plain = deepcopy(net)
    equal = []
    for step, route in enumerate(routes):
        for module in (net, plain):
            module.zero_grad()
            module(batch(rank, step), route[rank]).square().mean().backward()
        average_gradients(plain)
        pairs = zip(net.parameters(), plain.parameters(), strict=True)
        equal.append(
            all(q.grad is None if p.grad is None else torch.equal(p.grad, q.grad) for p, q in pairs)
        )
    return equal


ROUTES = [("abcd", "dcba"), ("abcd", "badc"), ("ab", "cd"), ("a", "abcd"), ("dbca", "abcd")]


def routed(rank: int) -> tuple[list[bool], list[int]]:
    torch.manual_seed(0)
    net = Routed()
    scheduler = GradientScheduler(net, config("negotiated"))
    launched = watch_launches(scheduler)
    equal = run_steps(rank, net, ROUTES * 3)
    scheduler.detach()
    return equal, launched


def test_ranks_that_take_layers_in_unlike_orders_launch_alike() -> None:
    (equal, launched), other = run_ranks(2, routed)
    assert equal == [True] * len(ROUTES) * 3
    assert other == (equal, launched)
    assert len(launched) == len(ROUTES) * 3 * 8, "each group once a step"


def late_gradient(rank: int) -> tuple[list[str], bool]:
    """A checkpoint around a layer that is also used outside of it comes on in step 2."""
    torch.manual_seed(0)
    net = DirectAndReentrant()
    scheduler = GradientScheduler(net, config("negotiated"))
    plain = deepcopy(net)
    errors = []
    for step in range(6):
        net.use_checkpoint = plain.use_checkpoint = step >= 2
        for module in (net, plain):
            module.zero_grad()
        plain(batch(rank, step)).square().sum().backward()
        average_gradients(plain)
        try:
            net(batch(rank, step)).square().sum().backward()
            errors.append("")
        except ReductionError as error:
            errors.append(str(error))
    scheduler.detach()
    pairs = zip(net.parameters(), plain.parameters(), strict=True)
    return errors, all(torch.equal(p.grad, q.grad) for p, q in pairs)


def test_a_gradient_after_its_group_was_handed_over_is_refused_until_it_is_waited_for() -> None:
    for errors, equal in run_ranks(2, late_gradient):
        late = [step for step, error in enumerate(errors) if "got a further gradient" in error]
        assert late == [2, 3], errors  # the weight and the bias, each a group
        assert not any(errors[step] for step in (0, 1, 4, 5))
        assert equal


class Alarm(nn.Module):
    """Passes gradients on, or raises where it is armed."""

    def __init__(self) -> None:
        super().__init__()
        self.armed = False

    def forward(self, x: Tensor) -> Tensor:
        x = x * 1.0
        if self.armed:
            x.register_hook(self._ring)
        return x

    def _ring(self, _grad: Tensor) -> None:
        raise BackwardError("in backward")


class Alarmed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.alarm, self.last = Routed(), Alarm(), Routed()

    def forward(self, x: Tensor, route: str) -> Tensor:
        return self.last(self.alarm(self.first(x, route)), route)


def raising(rank: int, who: tuple[int, ...]) -> tuple[list[str], list[bool]]:
    """Steps 1 and 2 raise in the middle of backward on the ranks ``who``; then three clean ones."""
    torch.manual_seed(0)
    net = Alarmed()
    scheduler = GradientScheduler(net, config("negotiated"))
    errors = []
    for step in range(3):
        net.zero_grad()
        net.alarm.armed = rank in who and step > 0
        try:
            net(batch(rank, step), "abcd").square().mean().backward()
            errors.append("")
        except (BackwardError, ReductionError) as error:
            errors.append(f"{type(error).__name__}: {error}")
    net.alarm.armed = False
    equal = run_steps(rank, net, [("abcd", "dcba")] * 3)
    scheduler.detach()
    return errors, equal


@pytest.mark.parametrize("who", [(0,), (0, 1)])
def test_a_backward_that_raised_on_some_ranks_is_lost_on_all_and_the_next_is_clean(
    who: tuple[int, ...],
) -> None:
    for rank, (errors, equal) in enumerate(run_ranks(2, raising, who)):
        expected = (
            "BackwardError: in backward" if rank in who else "ReductionError: another rank gave up"
        )
        assert errors[0] == ""
        assert all(error.startswith(expected) for error in errors[1:]), errors
        assert equal == [True] * 3


def leaves(rank: int, how: str) -> str:
    """Rank 1 ends in the middle of a backward; what rank 0 hears."""
    torch.manual_seed(0)
    net = Alarmed()
    scheduler = GradientScheduler(net, config("negotiated", stall_timeout_s=10.0))
    net(batch(rank, 0), "abcd").square().mean().backward()
    net.alarm.armed = rank == 1
    try:
        net(batch(rank, 1), "abcd").square().mean().backward()
    except BackwardError:
        if how == "detaches":
            scheduler.detach()
        dist.barrier()
    except ReductionError as error:
        dist.barrier()
        return str(error)
    return ""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["detaches", "stays"])
def test_a_rank_that_does_not_come_back_is_an_error_elsewhere(how: str) -> None:
    first, second = run_ranks(2, leaves, how)
    assert first.startswith("the ranks could not agree on the groups to reduce: ")
    assert second == ""


def sleeper(rank: int) -> None:
    net = Routed()
    GradientScheduler(net, config("negotiated", stall_timeout_s=10.0))
    net(batch(rank, 0), "abcd").sum().backward()
    if rank == 1:
        until_told("rank 0 has given up")
    try:
        net(batch(rank, 1), "abcd").sum().backward()
    finally:
        tell(f"rank {rank} has given up")


@pytest.mark.slow
def test_a_cycle_is_bounded_by_stall_timeout_s() -> None:
    message = errors_of_ranks(2, sleeper)[0]
    assert message.startswith("ReductionError: the ranks could not agree")
    assert "stall_timeout_s" in message


def differ(rank: int) -> None:
    GradientScheduler(Routed(), config("negotiated" if rank else "static"))


def test_ranks_with_unlike_schedules_all_say_so() -> None:
    for message in errors_of_ranks(2, differ):
        assert "schedule is 'static' on rank 0 and 'negotiated' on rank 1" in message


def life(rank: int) -> dict[str, Any]:
    """Threads over the life of an engine; copies; groups within groups; a second engine."""
    torch.manual_seed(0)
    net = Routed()
    pairs = [dist.new_group([0, 1]), dist.new_group([1, 2])]
    ours = pairs[0] if rank == 0 else pairs[1]
    seen: dict[str, Any] = {"before": n_threads()}
    if rank > 0:  # a few of the ranks, by a group of their own, twice in turn
        for _ in range(2):
            scheduler = GradientScheduler(net, config("negotiated"), process_group=ours)
            net.zero_grad()
            net(batch(rank, 0), "abcd").sum().backward()
            scheduler.detach()
    scheduler = GradientScheduler(net, config("negotiated"))
    copies = deepcopy(net), pickle.loads(pickle.dumps(net))
    net.zero_grad()
    with scheduler.no_sync():
        net(batch(rank, 0), "abcd").sum().backward()
    net(batch(rank, 1), "abcd").sum().backward()
    seen["during"] = n_threads()
    for copy in copies:  # local: no other rank takes part
        if rank == 0:
            copy(batch(rank, 0), "abcd").sum().backward()
    seen["reduced"] = [p.grad.clone() for p in net.parameters()]
    scheduler.detach()
    seen["after"] = n_threads()
    return seen


def n_threads() -> int:
    return sum(thread.name == "gradsched-readiness" for thread in threading.enumerate())


def test_life_of_the_control_thread() -> None:
    ranks = run_ranks(3, life)
    for seen in ranks:
        assert (seen["before"], seen["during"], seen["after"]) == (0, 1, 0)
        assert all(map(torch.equal, seen["reduced"], ranks[0]["reduced"]))


SCRIPT = """
import sys, torch, torch.distributed as dist
from lightning_gradsched import GradientScheduler, GradSchedConfig
store, rank, how = sys.argv[1], int(sys.argv[2]), sys.argv[3]
dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2)
net = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(3)))
scheduler = GradientScheduler(
    net, GradSchedConfig(planner="per_tensor", schedule="negotiated")
)
for _ in range(3):
    net(torch.ones(2, 4)).sum().backward()
if how == "raises":
    hidden = net[:2](torch.ones(2, 4))
    if rank == 1:
        hidden.register_hook(lambda grad: 1 / 0)
    net[2](hidden).sum().backward()
print("done")
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ends", "raises"])
def test_a_process_that_never_detaches_still_ends(how: str, tmp_path: Path) -> None:
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(tmp_path / "store"), str(rank), how],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    ends = [(*process.communicate(timeout=240), process.returncode) for process in ranks]
    if how == "ends":
        assert [(out, code) for out, _, code in ends] == [("done\n", 0)] * 2, ends
    else:
        assert [code for *_, code in ends] == [1, 1], ends
        assert "could not agree on the groups" in ends[0][1]
        assert "ZeroDivisionError" in ends[1][1]
    assert not any("terminate called" in err for _, err, _ in ends)

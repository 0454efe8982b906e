"""``torch.compile``d modules: gradients as DDP has them, and groups that leave in between."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lightning_gradsched import GradientScheduler, GradSchedConfig
from lightning_gradsched.core.cost import CostModel
from lightning_gradsched.core.plan import GroupPlan
from lightning_gradsched.core.profile import BackwardProfile
from lightning_gradsched.core.timeline import COMMUNICATION, QUEUE, Timeline
from lightning_gradsched.runtime.graph import ready_order
from lightning_gradsched.runtime.profiler import MEASURED_STEPS, WARM_UP_STEPS
from tests.ranks import run_ranks

WIDTH = 6
TIMEOUT_S = 240.0  # what compiles takes long on a busy machine
State = list[Tensor]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.norm = nn.BatchNorm1d(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.norm(self.up(x))))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.decode = nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.decode(x)


class Compiled(NamedTuple):
    """How to compile: what the engine is given, and what is called."""

    module: nn.Module
    forward: nn.Module


def whole(net: nn.Module, backend: str) -> Compiled:
    compiled: Any = torch.compile(net, backend=backend)
    return Compiled(compiled, compiled)


def fullgraph(net: nn.Module, backend: str) -> Compiled:
    compiled: Any = torch.compile(net, backend=backend, fullgraph=True)
    return Compiled(compiled, compiled)


def after(net: nn.Module, backend: str) -> Compiled:
    compiled: Any = torch.compile(net, backend=backend)
    return Compiled(net, compiled)


def in_place(net: nn.Module, backend: str) -> Compiled:
    net.compile(backend=backend)
    return Compiled(net, net)


def by_block(net: nn.Module, backend: str) -> Compiled:
    for block in net.blocks:
        block.compile(backend=backend)
    return Compiled(net, net)


class Seen(NamedTuple):
    steps: list[State]  # gradients and buffers
    blocks: list[list[str]]  # names, given out at once in the last step
    plan: tuple[tuple[str, ...], ...]
    timeline: Timeline | None


def train(
    net: nn.Module, forward: nn.Module, rank: int, n_steps: int = 4
) -> tuple[list[State], list[list[str]]]:
    generator = torch.Generator().manual_seed(rank)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    names = {id(param): name for name, param in net.named_parameters()}
    steps, blocks = [], []
    for _ in range(n_steps):
        optimizer.zero_grad()
        loss = forward(torch.randn(4, WIDTH, generator=generator)).square().mean()
        blocks = [
            [names[id(leaf)] for leaf in block if id(leaf) in names]
            for block in ready_order([loss.grad_fn]).blocks
        ]
        loss.backward()
        optimizer.step()
        steps.append([v.clone() for v in (*(p.grad for p in net.parameters()), *net.buffers())])
    return steps, [block for block in blocks if block]


def scheduled(
    rank: int, how: Callable[[nn.Module, str], Compiled], backend: str, n_steps: int, config: Any
) -> tuple[Seen, list[State]]:
    torch.manual_seed(0)
    ours = Net()
    theirs = deepcopy(ours)
    module, forward = how(ours, backend)
    scheduler = GradientScheduler(module, GradSchedConfig(record_every_n_steps=1, **config))
    steps, blocks = train(ours, forward, rank, n_steps)
    timelines = scheduler.timelines()
    seen = Seen(steps, blocks, plain(scheduler.plan), timelines[-1] if timelines else None)
    scheduler.detach()
    torch._dynamo.reset()  # both are of one class, and would run one compiled graph
    ddp = DistributedDataParallel(theirs)
    if how is by_block:
        by_block(theirs, backend)
    reference: Any = ddp if how is by_block else torch.compile(ddp, backend=backend)
    return seen, train(theirs, reference, rank, n_steps)[0]


def in_turn(
    rank: int, hows: Sequence[Callable[[nn.Module, str], Compiled]]
) -> list[tuple[Seen, list[State]]]:
    """All in one process: what compiles loads hundreds of modules when it first does."""
    results = []
    for how in hows:
        torch._dynamo.reset()
        results.append(scheduled(rank, how, "aot_eager", 4, SMALL))
    return results


def plain(plan: GroupPlan | None) -> tuple[tuple[str, ...], ...]:
    """The groups, by the names that the net itself has."""
    assert plan is not None
    return tuple(tuple(name.removeprefix("_orig_mod.") for name in group) for group in plan.groups)


def first_left_before_the_last_was_ready(timeline: Timeline, n_groups: int) -> bool:
    launched = {s.label: s.start_s for s in timeline.spans if s.track == COMMUNICATION}
    ready = {s.label: s.start_s for s in timeline.spans if s.track == QUEUE}
    return launched["0"] < ready[str(n_groups - 1)]


SMALL = {"planner": "fixed_size", "group_nbytes": 200}


@pytest.mark.parametrize(
    "hows",
    [(whole, by_block), pytest.param((fullgraph, after, in_place), marks=pytest.mark.slow)],
    ids=["whole and by block", "in other ways"],
)
def test_groups_leave_while_a_compiled_backward_runs(hows: Any) -> None:
    """Bit for bit DDP's gradients, whose own graphs are whole, as its buckets are larger."""
    for results in run_ranks(2, in_turn, hows, timeout_s=TIMEOUT_S):
        for how, (seen, theirs) in zip(hows, results, strict=True):
            for ours, step in zip(seen.steps, theirs, strict=True):
                assert all(torch.equal(a, b) for a, b in zip(ours, step, strict=True)), how
            assert len(seen.plan) > 2, how
            assert len(seen.blocks) > 2, how
            assert seen.timeline is not None
            assert first_left_before_the_last_was_ready(seen.timeline, len(seen.plan)), how


def cut_in_three(profile: BackwardProfile, _cost: CostModel) -> GroupPlan:
    """A measured plan: two cuts inside of what is given out, whatever the times."""
    names = [param.name for param in profile.params]
    return GroupPlan("three", (tuple(names[:2]), tuple(names[2:8]), tuple(names[8:])))


@pytest.mark.parametrize("how", [whole, pytest.param(after, marks=pytest.mark.slow)])
def test_a_settled_plan_has_the_graph_cut_where_its_groups_end(how: Any) -> None:
    n_steps = WARM_UP_STEPS + MEASURED_STEPS + 8
    config = {"planner": cut_in_three}
    ranks = run_ranks(2, scheduled, how, "aot_eager", n_steps, config, timeout_s=TIMEOUT_S)
    for seen, theirs in ranks:
        for ours, step in zip(seen.steps, theirs, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours, step, strict=True))
        assert [set(block) for block in seen.blocks] == [set(group) for group in seen.plan]
        assert len(seen.plan) == 3
    assert ranks[0][0].plan == ranks[1][0].plan


@pytest.mark.slow
def test_with_machine_code_gradients_are_ddps() -> None:
    """Where fusion does not change numbers: of the same graphs, cut elsewhere."""
    ranks = run_ranks(2, scheduled, whole, "inductor", 4, SMALL, timeout_s=500.0)
    for seen, theirs in ranks:
        assert len(seen.blocks) > 2
        for ours, step in zip(seen.steps, theirs, strict=True):
            for a, b in zip(ours, step, strict=True):
                torch.testing.assert_close(a, b)
    n_params = len(list(Net().parameters()))
    for a, b in zip(ranks[0][0].steps, ranks[1][0].steps, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a[:n_params], b[:n_params], strict=True))


def compiled_before(rank: int) -> list[tuple[list[str], int]]:
    """Warnings and what is given out at once: by a graph that ran before, and without splitting."""
    warnings: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: warnings.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("lightning_gradsched").addHandler(handler)
    results = []
    for splits in (True, False):
        torch._dynamo.reset()
        torch.manual_seed(0)
        net = Net()
        run = torch.compile(net, backend="aot_eager")
        if splits:
            run(torch.ones(4, WIDTH))
        torch._dynamo.config.optimize_ddp = splits
        scheduler = GradientScheduler(run, GradSchedConfig(**SMALL))
        _, blocks = train(net, run, rank)
        scheduler.detach()
        results.append((warnings[:], len(blocks)))
        warnings.clear()
    return results


def test_what_cannot_be_cut_is_warned_of() -> None:
    for results in run_ranks(2, compiled_before, timeout_s=TIMEOUT_S):
        for warnings, n_blocks in results:
            assert n_blocks == 1
            assert len(warnings) == 1
            assert "torch._dynamo.reset()" in warnings[0]

"""GradientScheduler on real ranks, in plain PyTorch loops."""

from __future__ import annotations

import gc
import pickle
import weakref
from copy import deepcopy
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lightning_gradsched import GradientScheduler, GradSchedConfig
from tests.parity.nets import WIDTH
from tests.parity.reference import average_gradients
from tests.ranks import errors_of_ranks, run_ranks, tell, until_told
from tests.runtime.branches import Branches, Grads, equal, grads_of


def branch_steps(rank: int, uses: list[tuple[str, str]], zero: str) -> list[tuple[Grads, ...]]:
    """Gradients of ours, DDP with find_unused_parameters, and the reference, step by step."""
    torch.manual_seed(0)
    ours = Branches()
    others = deepcopy(ours), deepcopy(ours)
    scheduler = GradientScheduler(ours, GradSchedConfig(planner="per_tensor"))
    ddp = DistributedDataParallel(others[0], find_unused_parameters=True)
    steps = []
    for i, use in enumerate(uses):
        x = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(10 * i + rank))
        for net, forward in ((ours, ours), (others[0], ddp), (others[1], others[1])):
            if zero != "never":
                net.zero_grad(set_to_none=zero == "to_none")
            forward(x, use[rank]).square().mean().backward()
        average_gradients(others[1])
        steps.append((grads_of(ours), grads_of(others[0]), grads_of(others[1])))
    scheduler.detach()
    return steps


USES = [("abc", "abc"), ("ab", "abc"), ("ac", "ac"), ("a", "b"), ("abc", "c"), ("b", "ba")]
ZEROS = ["to_none", "to_zero", "never"]


def branch_steps_each_way(rank: int, uses: list[tuple[str, str]]) -> list[Any]:
    return [branch_steps(rank, uses, zero) for zero in ZEROS]


@pytest.mark.parametrize("first", [0, 2, 3])
def test_unused_parameters_are_as_in_ddp_with_find_unused(first: int) -> None:
    ranks = run_ranks(2, branch_steps_each_way, USES[first:])
    for rank, ways in enumerate(ranks):
        for zero, steps, first_ranks in zip(ZEROS, ways, ranks[0], strict=True):
            for i, (ours, ddp, reference) in enumerate(steps):
                assert equal(ours, first_ranks[i][0]), (zero, rank, i, "across ranks")
                assert equal(ours, ddp), (zero, rank, i, "ddp")
                if zero == "to_none":
                    assert equal(ours, reference), (rank, i, "reference")


def mismatch(rank: int, kind: str) -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(4, 4), nn.Linear(4, 8 if kind == "shape" and rank == 1 else 4)]
    net = nn.Sequential(*layers)
    if kind == "frozen" and rank == 1:
        net[1].bias.requires_grad_(False)
    if kind == "dtype" and rank == 1:
        net[0].to(torch.float64)
    planner = "single" if kind == "config" and rank == 1 else "per_tensor"
    GradientScheduler(net, GradSchedConfig(planner=planner))
    net(torch.ones(1, 4)).sum().backward()


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("shape", ["parameter 2", "'1.weight'", "(4, 4)", "(8, 4)"]),
        ("frozen", ["parameter 3", "'1.bias'", "missing (it has 3)"]),
        ("dtype", ["parameter 0", "'0.weight'", "float32", "float64"]),
        ("config", ["planner is 'per_tensor' on rank 0 and 'single' on rank 1"]),
    ],
)
def test_ranks_that_differ_all_say_how(kind: str, named: list[str]) -> None:
    for message in errors_of_ranks(2, mismatch, kind):
        assert message.startswith("ConsensusError")
        for part in [*named, "rank 0", "rank 1"]:
            assert part in message


def state_after_attach(rank: int) -> dict[str, Tensor]:
    torch.manual_seed(rank)
    net = nn.Sequential(nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last), nn.BatchNorm2d(3))
    net[1].running_mean.fill_(rank + 7)
    GradientScheduler(net)
    return dict(net.state_dict())


def test_rank_0s_parameters_and_buffers_are_everyones() -> None:
    first, *others = run_ranks(3, state_after_attach)
    assert first["1.running_mean"].eq(7).all()
    for other in others:
        assert all(torch.equal(first[name], other[name]) for name in first)


def life(rank: int) -> dict[str, Any]:
    torch.manual_seed(0)
    net = Branches()
    scheduler = GradientScheduler(net, GradSchedConfig(record_every_n_steps=2))
    x = torch.full((1, WIDTH), float(rank + 1))
    copies = deepcopy(net), pickle.loads(pickle.dumps(net))
    seen: dict[str, Any] = {"plan_before": scheduler.plan, "error_before": ""}
    try:
        scheduler.report()
    except RuntimeError as error:
        seen["error_before"] = str(error)
    for _ in range(5):
        net.zero_grad()
        net(x, "abc").sum().backward()
    seen.update(schedule=str(scheduler.schedule), n_recorded=scheduler.report().n_steps)
    seen["reduced"] = grads_of(net)
    scheduler.detach()
    seen["n_recorded_after_detach"] = scheduler.report().n_steps
    for module in (net, *copies):
        module.zero_grad()
        module(x, "abc").sum().backward()
    seen["local"] = [grads_of(module) for module in (net, *copies)]
    return seen


def test_life_of_a_scheduler() -> None:
    ranks = run_ranks(2, life)
    for seen in ranks:
        assert seen["plan_before"] is None
        assert "no step is measured yet: 0 done" in seen["error_before"]
        assert seen["schedule"] == "R0 W0"
        assert seen["n_recorded"] == seen["n_recorded_after_detach"] == 2
        assert equal(seen["reduced"], ranks[0]["reduced"])
        assert all(equal(seen["local"][0], copy) for copy in seen["local"][1:])
    assert not equal(ranks[0]["local"][0], ranks[1]["local"][0]), "detached: local again"


def without_the_modules_forward(rank: int) -> tuple[Grads, Grads]:
    """Layers called one by one: no root is seen; the order is learned from the first backward."""
    torch.manual_seed(0)
    net = Branches()
    plain = deepcopy(net)
    scheduler = GradientScheduler(net, GradSchedConfig(planner="per_tensor"))
    for i in range(3):
        x = torch.full((2, WIDTH), 0.1 * (rank + 1 + i))
        for module in (net, plain):
            module.zero_grad()
            module.c(module.a(x)).square().sum().backward()
        average_gradients(plain)
    assert scheduler.plan is not None
    assert scheduler.plan.groups[0] == ("c.bias",)
    return grads_of(net), grads_of(plain)


def test_a_backward_whose_root_was_not_seen_is_reduced_at_its_end() -> None:
    for ours, reference in run_ranks(2, without_the_modules_forward):
        assert equal(ours, reference)


def two_models(rank: int, shared_group: bool) -> list[tuple[Grads, ...]]:
    """A discriminator on a generator, both in one backward, ranks using unlike parts of one."""
    torch.manual_seed(0)
    nets = Branches(), Branches()
    plains = deepcopy(nets)
    # The reductions of each on a group of its own, made by us or given.
    groups = [dist.new_group() if shared_group else None for _ in nets]
    config = GradSchedConfig(planner="per_tensor")
    schedulers = [
        GradientScheduler(net, config, process_group=group)
        for net, group in zip(nets, groups, strict=True)
    ]
    steps = []
    for i, use in enumerate([("abc", "abc"), ("abc", "ab"), ("c", "a"), ("ab", "abc"), ("b", "b")]):
        x = torch.full((2, WIDTH), 0.1 * (rank + 1 + i))
        for generator, discriminator in (nets, plains):
            generator.zero_grad()
            discriminator.zero_grad()
            discriminator(generator(x, "abc"), use[rank]).square().sum().backward()
        for plain in plains:
            average_gradients(plain)
        steps += [(grads_of(a), grads_of(b)) for a, b in zip(nets, plains, strict=True)]
    for scheduler in schedulers:
        scheduler.detach()
    return steps


@pytest.mark.parametrize("given", [False, True])
def test_two_models_in_one_backward_do_not_mix(given: bool) -> None:
    for steps in run_ranks(2, two_models, given):
        assert all(equal(ours, reference) for ours, reference in steps)


def nested_no_sync(rank: int) -> Grads:
    torch.manual_seed(0)
    net = Branches()
    scheduler = GradientScheduler(net)
    with scheduler.no_sync():
        with scheduler.no_sync():
            pass
        net(torch.full((2, WIDTH), 0.1 * (rank + 1)), "abc").sum().backward()
    return grads_of(net)


def test_no_sync_nests() -> None:
    first, second = run_ranks(2, nested_no_sync)
    assert not equal(first, second), "local on each rank"


def sleeper(rank: int) -> None:
    net = nn.Linear(2, 1)
    GradientScheduler(net, GradSchedConfig(planner="ddp", stall_timeout_s=10.0))
    if rank == 1:
        until_told("rank 0 has given up")
    try:
        net(torch.ones(1, 2)).sum().backward()
    finally:
        tell(f"rank {rank} has given up")


@pytest.mark.slow
def test_a_wait_is_bounded_by_stall_timeout_s_and_names_what_was_waited_for() -> None:
    message = errors_of_ranks(2, sleeper)[0]
    assert message.startswith("ReductionError: rank 0 waited")
    assert "for the agreement on the settings" in message
    assert "it did not finish in time for stall_timeout_s=10" in message


def nested_grad(rank: int) -> tuple[Grads, Grads]:
    """A gradient penalty: ``autograd.grad`` through the net before its backward."""
    torch.manual_seed(0)
    net = Branches()
    plain = deepcopy(net)
    GradientScheduler(net, GradSchedConfig(planner="per_tensor"))
    for _ in range(2):
        for module in (net, plain):
            module.zero_grad()
            x = torch.full((2, WIDTH), 0.1 * (rank + 1), requires_grad=True)
            out = module(x, "abc").square().sum()
            (slope,) = torch.autograd.grad(out, x, create_graph=True)
            (out + slope.square().sum()).backward()
        average_gradients(plain)
    return grads_of(net), grads_of(plain)


def test_a_gradient_penalty_is_reduced_once() -> None:
    for ours, reference in run_ranks(2, nested_grad):
        assert equal(ours, reference)


def scaled(rank: int) -> list[bool]:
    """fp16 loss scaling: an inf on one rank must be everyone's, so that all skip the step."""
    torch.manual_seed(0)
    net = nn.Linear(2, 1)
    GradientScheduler(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    moved = []
    for step in range(3):
        optimizer.zero_grad()
        x = torch.full((1, 2), float("inf") if (step, rank) == (1, 1) else 1.0)
        before = net.weight.detach().clone()
        scaler.scale(net(x).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        moved.append(not torch.equal(before, net.weight))
    return moved


def test_an_inf_on_one_rank_skips_the_step_on_all() -> None:
    assert run_ranks(2, scaled) == [[True, False, True]] * 2


def graph_after_step(rank: int) -> list[bool]:
    """Whether the output's graph is gone without the garbage collector, at each step."""
    net = Branches()
    scheduler = GradientScheduler(net)
    gone = []
    gc.disable()
    for _ in range(3):
        out = net(torch.ones(2, WIDTH), "abc")
        scheduler.prepare(out.sum())
        token = Branches()  # anything that takes a weak reference
        out.grad_fn.metadata["token"] = token
        alive = weakref.ref(token)
        out.sum().backward()
        del out, token
        gone.append(alive() is None)
    return gone


def test_no_hook_keeps_a_graph_alive() -> None:
    assert run_ranks(2, graph_after_step) == [[True] * 3] * 2


def test_no_process_group_is_a_named_error() -> None:
    with pytest.raises(RuntimeError, match="init_process_group"):
        GradientScheduler(nn.Linear(1, 1))

"""Profile, calibrate and plan from it, on real ranks while they train."""

from __future__ import annotations

import pickle
from copy import deepcopy
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from lightning_gradsched import GradientScheduler, GradSchedConfig
from lightning_gradsched.core.cost import CostModel, fit_all_reduce
from lightning_gradsched.core.plan import GroupPlan, Planner, ddp
from lightning_gradsched.core.profile import BackwardProfile, NetworkProfile
from lightning_gradsched.runtime.profiler import MEASURED_STEPS, WARM_UP_STEPS, StepProfiler
from tests.parity.nets import WIDTH, Residual
from tests.parity.reference import average_gradients
from tests.ranks import errors_of_ranks, run_ranks

N_PROFILED = WARM_UP_STEPS + MEASURED_STEPS


class Ticks:
    """A clock that stands still but when told."""

    now_s = 0.0

    def mark(self) -> float:
        return self.now_s

    def mark_when_done(self, work: Any) -> float:
        raise AssertionError("a profile times no collective")

    def seconds(self, since: float, until: float) -> float:
        return until - since


def test_times_are_medians_by_the_marks() -> None:
    clock = Ticks()
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    unused = nn.Parameter(torch.zeros(1))
    params = {**dict(net.named_parameters()), "unused": unused}
    profiler = StepProfiler(net, params, clock)
    net[0].register_forward_hook(lambda *_: setattr(clock, "now_s", clock.now_s + 3.0))
    for step in range(N_PROFILED):
        assert not profiler.is_done
        clock.now_s = 100.0 * step
        net(torch.ones(1, 2))
        clock.now_s += 1.0
        profiler.backward_began()
        # One step in the middle is slow, and must not count.
        for name, wait_s in (("2.weight", 2.0), ("0.weight", 50.0 if step == 4 else 5.0)):
            clock.now_s += wait_s
            profiler.gradient(name)
        clock.now_s += 0.5
        profiler.backward_ended()
        profiler.step_ended()
    assert profiler.is_done
    # forward, backward; ready of 0.weight, 2.weight, unused; first use of them
    assert profiler.times() == [4.0, 7.5, 7.0, 2.0, 7.5, 0.0, 3.0, 0.0]
    profiler.detach()
    assert not any(module._forward_pre_hooks for module in net)


def train(rank: int, planner: str | Planner, n_steps: int) -> dict[str, Any]:
    torch.manual_seed(0)
    net = Residual()
    plain = deepcopy(net)
    scheduler = GradientScheduler(net, GradSchedConfig(planner=planner))
    plans, equal = [], True
    for i in range(n_steps):
        x = torch.full((2, WIDTH), 0.1 * (rank + 1 + i)).cos()
        for module in (net, plain):
            module.zero_grad()
            torch.cos(module(x)).mean().backward()
        average_gradients(plain)
        pairs = zip(net.parameters(), plain.parameters(), strict=True)
        equal &= all(torch.equal(a.grad, b.grad) for a, b in pairs)
        plans.append(scheduler.plan)
    hooks = sum(len(module._forward_pre_hooks) for module in net.modules())
    return {
        "equal": equal,
        "plans": plans,
        "profile": scheduler.profile,
        "network": scheduler.network,
        "predicted": scheduler.predicted,
        "tried": scheduler.tried,
        "hooks": hooks,
    }


def test_plans_from_what_all_ranks_measured_and_gradients_stay_the_same() -> None:
    ranks = run_ranks(2, train, "optimal", N_PROFILED + 3)
    for seen in ranks:
        assert seen["equal"]
        assert [p.planner for p in seen["plans"]] == ["ddp"] * N_PROFILED + ["optimal"] * 3
        assert seen["hooks"] == 0, "the profile's hooks are gone"
    first, second = ranks
    assert first["plans"][-1] == second["plans"][-1]
    assert first["predicted"].busy_s("communication") > 0
    assert first["predicted"] == second["predicted"]
    assert first["profile"] == second["profile"]
    assert first["network"] == second["network"]


def test_the_measured_profile_is_that_of_the_net() -> None:
    seen = run_ranks(2, train, "mg_wfbp", N_PROFILED)[0]
    profile: BackwardProfile = seen["profile"]
    network: NetworkProfile = seen["network"]
    needed = {p.name: p.needed_s for p in profile.params}
    ready = {p.name: p.ready_s for p in profile.params}
    assert set(ready) == {name for name, _ in Residual().named_parameters()}
    assert 0 <= needed["side.weight"] < needed["blocks.0.weight"] < needed["norm.weight"]
    assert 0 < ready["norm.weight"] < ready["blocks.3.weight"] < ready["blocks.0.weight"]
    assert max(ready.values()) <= profile.backward_s
    assert profile.forward_s > 0
    assert (network.backend, network.n_nodes, network.ranks_per_node) == ("gloo", 1, 2)
    assert len({sample.nbytes for sample in network.samples}) >= 3
    assert fit_all_reduce(network).model.all_reduce_s(1e6) > 0


def halves(profile: BackwardProfile, cost: CostModel) -> GroupPlan:
    """A planner of the user's own."""
    names = [param.name for param in profile.params]
    assert profile.backward_s > 0 < cost.all_reduce_s(1e6)
    middle = len(names) // 2
    return GroupPlan("halves", (tuple(names[:middle]), tuple(names[middle:])))


def forgetful(profile: BackwardProfile, cost: CostModel) -> GroupPlan:
    return GroupPlan("forgetful", (tuple(param.name for param in profile.params[1:]),))


def test_a_planner_of_the_users_own_is_one_function() -> None:
    for seen in run_ranks(2, train, halves, N_PROFILED + 2):
        assert seen["equal"]
        assert seen["plans"][-1].planner == "halves"
        assert len(seen["plans"][-1].groups) == 2


def test_a_planner_that_loses_a_parameter_is_refused_on_every_rank() -> None:
    for message in errors_of_ranks(2, train, forgetful, N_PROFILED + 2):
        assert message.startswith(
            "PlanError: planner 'forgetful' failed on rank 0: PlanError: plan"
        )
        assert "expected each parameter in exactly one group; it lacks" in message


def returns_nothing(profile: BackwardProfile, cost: CostModel) -> None:
    """A planner without its return."""


def fails_on_rank_1(profile: BackwardProfile, cost: CostModel) -> GroupPlan:
    if dist.get_rank() == 1:
        raise KeyError("layer7")
    return ddp(profile, cost)


def differs_by_rank(profile: BackwardProfile, cost: CostModel) -> GroupPlan:
    names = [param.name for param in profile.params]
    cut = 1 + dist.get_rank()
    return GroupPlan("differs", (tuple(names[:cut]), tuple(names[cut:])))


@pytest.mark.parametrize(
    ("planner", "message"),
    [
        (returns_nothing, "failed on rank 0: PlanError: expected a planner to return a GroupPlan"),
        (fails_on_rank_1, "'fails_on_rank_1' failed on rank 1: KeyError: 'layer7'"),
        (differs_by_rank, "rank 1 has 'differs' of 2; the first that differs is"),
    ],
)
def test_a_planner_that_goes_wrong_on_a_rank_is_named_on_every_rank(
    planner: Planner, message: str
) -> None:
    for said in errors_of_ranks(2, train, planner, N_PROFILED + 2):
        assert message in said


def copies_during_profile(rank: int) -> tuple[int, int]:
    """Hooks that would still do something on a copy and on a pickled module."""
    net = Residual()
    scheduler = GradientScheduler(net, GradSchedConfig(planner="optimal"))
    assert scheduler.profile is None
    before = sum(len(module._forward_pre_hooks) for module in net.modules())
    alive = 0
    for copy in (deepcopy(net), pickle.loads(pickle.dumps(net))):
        hooks = [h for module in copy.modules() for h in module._forward_pre_hooks.values()]
        alive += sum(hook._method is not None for hook in hooks)
        torch.cos(copy(torch.ones(2, WIDTH))).mean().backward()
    return before, alive


def test_a_module_can_be_copied_and_pickled_while_it_is_profiled() -> None:
    for before, alive in run_ranks(2, copies_during_profile):
        assert before > 0
        assert alive == 0


def test_a_forward_for_validation_is_not_the_steps() -> None:
    clock = Ticks()
    net = nn.Linear(2, 1, bias=False)
    profiler = StepProfiler(net, dict(net.named_parameters()), clock)
    for _ in range(N_PROFILED):
        net.eval()(torch.ones(1, 2))
        clock.now_s += 100.0
        net.train()(torch.ones(1, 2))
        clock.now_s += 1.0
        profiler.backward_began()
        profiler.gradient("weight")
        profiler.backward_ended()
        profiler.step_ended()
    assert profiler.times()[0] == 1.0


def test_profiling_does_not_break_a_compiled_graph() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    profiler = StepProfiler(net, dict(net.named_parameters()), Ticks())
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    assert compiled(torch.ones(1, 2)).shape == (1, 1)
    profiler.detach()


def unfreeze(rank: int) -> list[str]:
    """The layer joins after the first profile: measured anew, and planned anew."""
    net = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 1))
    net[0].requires_grad_(False)
    scheduler = GradientScheduler(net, GradSchedConfig(planner="optimal"))
    made = []
    for i in range(2 * N_PROFILED + 3):
        net[0].requires_grad_(i > N_PROFILED)
        x: Tensor = torch.ones(1, WIDTH)
        net(x).sum().backward()
        assert scheduler.plan is not None
        made.append(f"{scheduler.plan.planner} {sum(map(len, scheduler.plan.groups))}")
    return made


def test_an_unfrozen_layer_is_profiled_and_planned_anew() -> None:
    for made in run_ranks(2, unfreeze):
        assert made == [
            *["ddp 2"] * N_PROFILED,
            *["optimal 2"] * 2,  # the second tells all ranks of the layer, and reduces it apart
            *["ddp 4"] * N_PROFILED,
            "optimal 4",
        ]

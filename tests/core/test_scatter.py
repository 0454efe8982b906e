"""Plans in halves: who owns what, how they are lowered, and what they save where a step clips."""

from __future__ import annotations

import doctest
from dataclasses import replace

import pytest

from lightning_gradsched.core import scatter, shards
from lightning_gradsched.core.candidates import candidates_with_norms
from lightning_gradsched.core.cost import AlphaBeta
from lightning_gradsched.core.forward_overlap import step_s
from lightning_gradsched.core.plan import GroupPlan, check_plan, ddp, per_tensor
from lightning_gradsched.core.profile import BackwardProfile, ParamProfile
from lightning_gradsched.core.scatter import balanced, faster_with_norms, in_halves, waiting_s
from lightning_gradsched.core.schedule import ReductionSchedule, lower_into_forward
from lightning_gradsched.core.simulate import simulate
from lightning_gradsched.core.timeline import COMMUNICATION
from lightning_gradsched.errors import PlanError
from tests.core.test_forward_overlap import GBIT, ONE, net


def four_layers() -> BackwardProfile:
    """Backward of 4 s, a gradient a second, of the last layer first; then a forward of 2 s."""
    params = [
        ParamProfile(name, 2, ready_s=1.0 + i, needed_s=1.5 - 0.5 * i)
        for i, name in enumerate("dcba")
    ]
    return BackwardProfile(tuple(params), forward_s=2.0, backward_s=4.0)


PAIRS = GroupPlan("pairs", (("d",), ("c", "b"), ("a",)))


def test_doctests() -> None:
    for module in (scatter, shards):
        assert doctest.testmod(module).failed == 0


def test_all_but_the_first_group_belong_to_ranks() -> None:
    plan = in_halves(PAIRS, four_layers(), n_ranks=2)
    assert plan.groups == PAIRS.groups
    assert plan.owners == ((), (0, 1), (0,))
    assert str(lower_into_forward(plan, four_layers())) == "R0 S1 S2 W0 G2 G1 | W2 W1"


def test_what_is_sparse_complex_or_empty_belongs_to_nobody() -> None:
    params = [
        ParamProfile("first", 4),
        ParamProfile("rows", 4, dtype="sparse float32 of rows"),
        ParamProfile("wave", 4, dtype="complex64"),
        ParamProfile("empty", 0, dtype="float64"),
        ParamProfile("last", 4, dtype="bfloat16"),
    ]
    profile = BackwardProfile(tuple(params))
    assert in_halves(per_tensor(profile, ONE), profile, 2).owners == ((), (), (), (), (0,))


def test_a_schedule_of_halves_prints_and_parses() -> None:
    text = "R0 S1 S2 W0 G2 G1 | W2 W1"
    schedule = ReductionSchedule.parse(text)
    assert (str(schedule), schedule.launches, schedule.gathers) == (text, (0, 1, 2), (2, 1))
    assert schedule.teller == 0


@pytest.mark.parametrize("text", ["R0 S1 W0 | W1", "R0 G1 W0 | W1", "R0 S1 G1 S2 G2 W0 | W1 W2"])
def test_a_first_half_without_a_second_is_refused(text: str) -> None:
    with pytest.raises(PlanError):
        ReductionSchedule.parse(text)


def test_owners_must_be_those_of_the_group() -> None:
    for owners in ((), (0,), (1,)), ((), (0, 1)), ((), (0, 1), (1,), ()):
        with pytest.raises(PlanError, match="expected an owner for each parameter"):
            check_plan(replace(PAIRS, owners=owners), four_layers())
    check_plan(replace(PAIRS, owners=((), (0, 1), ())), four_layers())


def test_second_halves_begin_when_all_first_ones_have_ended() -> None:
    """A half of the pair takes 2 s, of the last group, which one rank owns alone, 2 s too."""
    profile = four_layers()
    plan = in_halves(PAIRS, profile, n_ranks=2)
    timeline = simulate(lower_into_forward(plan, profile), plan, profile, ONE)
    sent = [(s.label, s.start_s, s.end_s) for s in timeline.spans if s.track == COMMUNICATION]
    assert sent == [
        ("0", 1.0, 3.0),
        ("1 sums", 3.0, 5.0),
        ("2 sums", 4.0, 7.0),
        ("2", 7.0, 9.0),
        ("1", 7.0, 11.0),
    ]


@pytest.mark.parametrize("name", ["resnet50", "transformer", "many_small"])
def test_halves_shorten_steps_that_clip_where_communication_equals_compute(name: str) -> None:
    profile = net(name, 1.0, GBIT)
    best = candidates_with_norms(profile, GBIT, 2, most=4)[0].plan
    waits = waiting_s(ddp(profile, GBIT), profile, GBIT)
    assert best.owners
    assert step_s(best, profile, GBIT) < 0.92 * waits
    check_plan(best, profile)


def test_where_halves_are_no_faster_the_plan_stays_as_it_is() -> None:
    """One parameter is nearly all: its owner would receive it twice as long as an all-reduce."""
    params = (
        ParamProfile("head", 1, ready_s=1.0, needed_s=1.5),
        ParamProfile("stem", 99, ready_s=4.0, needed_s=0.0),
    )
    profile = BackwardProfile(params, forward_s=2.0, backward_s=4.0)
    plan = per_tensor(profile, ONE)
    assert faster_with_norms(plan, profile, ONE, 2) is plan


def test_balanced_groups_hold_as_much_for_each_rank() -> None:
    profile = net("resnet50", 1.0, GBIT)
    plan = in_halves(balanced(profile, 2, 1 << 20), profile, 2)
    nbytes_of = {param.name: param.nbytes for param in profile.params}
    for names, ranks in list(zip(plan.groups, plan.owners, strict=True))[1:-1]:
        own = [
            sum(nbytes_of[n] for n, r in zip(names, ranks, strict=True) if r == k) for k in (0, 1)
        ]
        assert max(own) <= 1.1 * sum(own) / 2


def test_free_latency_and_no_ranks_to_spare_still_plan() -> None:
    profile = four_layers()
    found = candidates_with_norms(profile, AlphaBeta(0.0, 0.0), 3, most=4)
    assert any(candidate.plan.owners for candidate in found)

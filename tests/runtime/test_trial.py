"""The live trial: on a told clock, and on real ranks while they train."""

from __future__ import annotations

from typing import Any, cast

import pytest

from lightning_gradsched.core.candidates import Candidate
from lightning_gradsched.core.plan import GroupPlan
from lightning_gradsched.runtime.collectives import Collectives
from lightning_gradsched.runtime.profiler import MEASURED_STEPS
from lightning_gradsched.runtime.profiler import WARM_UP_STEPS as PROFILE_WARM_UP
from lightning_gradsched.runtime.trial import TIMED_STEPS, WARM_UP_STEPS, PlanTrial
from tests.ranks import run_ranks
from tests.runtime.test_profiler import Ticks, train

N_PROFILED = PROFILE_WARM_UP + MEASURED_STEPS
STEPS_A_PLAN = WARM_UP_STEPS + TIMED_STEPS


class SlowerRank:
    """Another rank that takes two seconds longer on the second plan."""

    def max(self, values: list[int]) -> list[int]:
        return [values[0], values[1] + 2_000_000_000, *values[2:]]


class Alone:
    def max(self, values: list[int]) -> list[int]:
        return values


def test_the_slowest_ranks_median_decides_and_warm_up_does_not_count() -> None:
    plans = [GroupPlan(name, (("w",),)) for name in ("first", "second")]
    clock = Ticks()
    trial = PlanTrial([Candidate(plan, 0.1) for plan in plans], clock)
    step_s = {"first": [99.0, 5.0, 5.0, 50.0, 5.0], "second": [0.0, 4.0, 4.0, 4.0, 4.0]}
    for name, times in step_s.items():
        for i, seconds in enumerate(times):
            assert trial.current.planner == name
            clock.now_s += seconds
            assert trial.step_ended() == (i == STEPS_A_PLAN - 1)
    assert trial.is_done
    winner, tried = trial.decide(cast(Collectives, SlowerRank()))
    assert winner.planner == "first", "the second is faster here, and slower on the other rank"
    assert [(t.planner, t.step_s, t.kept) for t in tried] == [
        ("first", 5.0, True),
        ("second", 6.0, False),
    ]


SPREAD_S = (-0.03, -0.01, 0.01, 0.03)  # of four steps about their median; their deviation is 0.02


def kept_of(plans: list[GroupPlan], medians_s: tuple[float, ...]) -> str:
    clock = Ticks()
    trial = PlanTrial([Candidate(plan, 0.1) for plan in plans], clock)
    for step_s in medians_s:
        for off_s in (1.0, *SPREAD_S):
            clock.now_s += step_s + off_s
            trial.step_ended()
    winner, _ = trial.decide(cast(Collectives, Alone()))
    return winner.planner


def test_of_plans_as_fast_but_for_noise_the_most_promising_is_kept() -> None:
    plans = [GroupPlan(name, (("w",),)) for name in ("promising", "lucky", "slow")]
    assert kept_of(plans, (1.0, 0.98, 1.1)) == "promising"
    assert kept_of(plans, (1.0, 0.97, 1.1)) == "lucky", "the noise is 2.6 %"


@pytest.mark.parametrize(
    "cheaper",
    [
        GroupPlan("cheaper", (("v",), ("w",))),
        GroupPlan("cheaper", (("v", "w"),)),
        GroupPlan("cheaper", (("v",), ("w",)), launches=(0, 1, 1), ends_with_backward=True),
    ],
)
def test_of_plans_as_fast_but_for_noise_the_one_that_costs_a_host_the_least_is_kept(
    cheaper: GroupPlan,
) -> None:
    promising = GroupPlan("promising", (("v",), ("w",)), launches=(0, 1, 0))
    slow = GroupPlan("slow", (("v", "w"),))
    assert kept_of([promising, cheaper, slow], (1.0, 1.02, 1.1)) == "cheaper"
    assert kept_of([promising, cheaper, slow], (1.0, 1.03, 1.1)) == "promising"


def test_auto_tries_plans_on_the_job_and_all_ranks_keep_the_same() -> None:
    ranks: list[dict[str, Any]] = run_ranks(2, train, "auto", N_PROFILED + 4 * STEPS_A_PLAN + 2)
    for seen in ranks:
        assert seen["equal"], "gradients are the reference's during the trial too"
        assert seen["tried"] == ranks[0]["tried"]
        assert seen["plans"] == ranks[0]["plans"]
        assert sum(tried.kept for tried in seen["tried"]) == 1
        assert "ddp" in [tried.planner for tried in seen["tried"]]
        kept = next(tried for tried in seen["tried"] if tried.kept)
        assert kept.step_s > 0
        assert seen["plans"][-1].planner == kept.planner
        n_tried = len(seen["tried"])
        for number, tried in enumerate(seen["tried"]):
            first = N_PROFILED + number * STEPS_A_PLAN
            during = seen["plans"][first : first + STEPS_A_PLAN]
            assert {plan.planner for plan in during} == {tried.planner}
        assert n_tried >= 2

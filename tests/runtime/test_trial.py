"""The live trial: on a told clock, and on real ranks while they train."""

from __future__ import annotations

from typing import Any, cast

from lightning_gradsched.core.candidates import Candidate
from lightning_gradsched.core.plan import GroupPlan
from lightning_gradsched.runtime.collectives import Collectives
from lightning_gradsched.runtime.profiler import MEASURED_STEPS
from lightning_gradsched.runtime.profiler import WARM_UP_STEPS as PROFILE_WARM_UP
from lightning_gradsched.runtime.trial import NOISE, TIMED_STEPS, WARM_UP_STEPS, PlanTrial
from tests.ranks import run_ranks
from tests.runtime.test_profiler import Ticks, train

N_PROFILED = PROFILE_WARM_UP + MEASURED_STEPS
STEPS_A_PLAN = WARM_UP_STEPS + TIMED_STEPS


class SlowerRank:
    """Another rank that takes two seconds longer on the second plan."""

    def max(self, values: list[int]) -> list[int]:
        return [values[0], values[1] + 2_000_000_000]


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


def test_of_plans_as_fast_but_for_noise_the_most_promising_is_kept() -> None:
    plans = [GroupPlan(name, (("w",),)) for name in ("promising", "lucky", "slow")]
    clock = Ticks()
    trial = PlanTrial([Candidate(plan, 0.1) for plan in plans], clock)
    for step_s in (1.0, 1.0 - NOISE / 2, 1.1):
        for _ in range(STEPS_A_PLAN):
            clock.now_s += step_s
            trial.step_ended()
    winner, _ = trial.decide(cast(Collectives, Alone()))
    assert winner.planner == "promising"


def test_of_plans_as_fast_but_for_noise_the_one_of_fewest_messages_is_kept() -> None:
    groups = (("v",), ("w",))
    plans = [
        GroupPlan("promising", groups, launches=(0, 1, 0)),
        GroupPlan("fewest", groups),
        GroupPlan("slow", (("v", "w"),)),
    ]
    clock = Ticks()
    trial = PlanTrial([Candidate(plan, 0.1) for plan in plans], clock)
    for step_s in (1.0, 1.0 + NOISE / 2, 1.1):
        for _ in range(STEPS_A_PLAN):
            clock.now_s += step_s
            trial.step_ended()
    winner, _ = trial.decide(cast(Collectives, Alone()))
    assert winner.planner == "fewest"


def test_auto_tries_plans_on_the_job_and_all_ranks_keep_the_same() -> None:
    ranks: list[dict[str, Any]] = run_ranks(2, train, "auto", N_PROFILED + 4 * STEPS_A_PLAN + 2)
    for seen in ranks:
        assert seen["equal"], "gradients are the reference's during the trial too"
        assert seen["tried"] == ranks[0]["tried"]
        assert seen["plans"] == ranks[0]["plans"]
        assert sum(tried.kept for tried in seen["tried"]) == 1
        assert "ddp" in [tried.planner for tried in seen["tried"]]
        kept = next(tried for tried in seen["tried"] if tried.kept)
        assert 0 < kept.step_s <= (1 + NOISE) * min(tried.step_s for tried in seen["tried"])
        assert seen["plans"][-1].planner == kept.planner
        n_tried = len(seen["tried"])
        for number, tried in enumerate(seen["tried"]):
            first = N_PROFILED + number * STEPS_A_PLAN
            during = seen["plans"][first : first + STEPS_A_PLAN]
            assert {plan.planner for plan in during} == {tried.planner}
        assert n_tried >= 2

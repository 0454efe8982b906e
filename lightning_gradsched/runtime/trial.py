"""Tries the best plans on the running job: a few real steps each, and keeps one of the fastest."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from statistics import median
from typing import Any

from lightning_gradsched.core.candidates import Candidate
from lightning_gradsched.core.plan import GroupPlan
from lightning_gradsched.core.report import TriedPlan
from lightning_gradsched.runtime.collectives import Collectives
from lightning_gradsched.runtime.recorder import Clock

# A new plan's first step lays out its buckets; the ones after it are timed.
WARM_UP_STEPS = 1
TIMED_STEPS = 4
# By so many median deviations of a plan's steps two medians of four may differ by chance: normal
# steps deviate by 1 / 1.48 of their sigma, and such a median errs by 1.25 / sqrt(4) of it. Plans no
# further apart are told apart by what they cost a host, which no prediction knows of.
NOISE_IN_DEVIATIONS = 1.3


class PlanTrial:
    """Runs through ``candidates``; all ranks step through it alike.

    A step's time runs from the end of one reduction to the end of the next.
    """

    def __init__(self, candidates: Sequence[Candidate], clock: Clock) -> None:
        self._candidates = candidates
        self._clock = clock
        # Per candidate: the end of its warm-up and of each timed step.
        self._marks: list[list[Any]] = [[]]
        self._n_steps = 0

    @property
    def is_done(self) -> bool:
        return len(self._marks) > len(self._candidates)

    @property
    def current(self) -> GroupPlan:
        return self._candidates[len(self._marks) - 1].plan

    @property
    def is_over_next(self) -> bool:
        """Whether the next ``step_ended`` will be true."""
        return self._n_steps + 1 >= WARM_UP_STEPS + TIMED_STEPS

    def step_ended(self) -> bool:
        """Whether another plan's turn has come, or the trial is over."""
        self._n_steps += 1
        if self._n_steps >= WARM_UP_STEPS:
            self._marks[-1].append(self._clock.mark())
        if self._n_steps < WARM_UP_STEPS + TIMED_STEPS:
            return False
        self._marks.append([])
        self._n_steps = 0
        return True

    def decide(self, collectives: Collectives) -> tuple[GroupPlan, tuple[TriedPlan, ...]]:
        """The plan to keep, and the table. Collective.

        Of those whose slowest rank was as fast as any, but for noise, it is the one that costs a
        host the least, and of these the most promising.
        """
        steps_s = list(map(self._steps_s, self._marks[:-1]))
        local_s = [*map(median, steps_s), *map(_deviation, steps_s)]
        agreed_s = [1e-9 * ns for ns in collectives.max([int(1e9 * s) for s in local_s])]
        slowest_s, deviations_s = agreed_s[: len(steps_s)], agreed_s[len(steps_s) :]
        shares = (d / s for d, s in zip(deviations_s, slowest_s, strict=True))
        enough_s = (1 + NOISE_IN_DEVIATIONS * median(shares)) * min(slowest_s)
        fast = (i for i, step_s in enumerate(slowest_s) if step_s <= enough_s)
        best = min(fast, key=lambda i: _host_cost(self._candidates[i].plan))
        tried = tuple(
            TriedPlan(c.plan.planner, len(c.plan.groups), c.exposed_s, step_s, i == best)
            for i, (c, step_s) in enumerate(zip(self._candidates, slowest_s, strict=True))
        )
        return self._candidates[best].plan, tried

    def _steps_s(self, marks: Sequence[Any]) -> list[float]:
        return [self._clock.seconds(a, b) for a, b in pairwise(marks)]


def _deviation(values: Sequence[float]) -> float:
    """Half of ``values`` are as near to their median."""
    middle = median(values)
    return median(abs(value - middle) for value in values)


def _host_cost(plan: GroupPlan) -> tuple[int, bool]:
    """The less, the cheaper: each message costs time, and to hold groups open does."""
    return plan.n_messages, not plan.ends_with_backward

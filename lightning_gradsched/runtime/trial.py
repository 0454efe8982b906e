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
# Plans whose medians are no further apart are told apart by what they cost a host: so few steps
# cannot, and no prediction knows of it.
NOISE = 0.01


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
        local_ns = [int(1e9 * self._step_s(marks)) for marks in self._marks[:-1]]
        slowest_s = [1e-9 * ns for ns in collectives.max(local_ns)]
        enough_s = (1 + NOISE) * min(slowest_s)
        fast = (i for i, step_s in enumerate(slowest_s) if step_s <= enough_s)
        best = min(fast, key=lambda i: _host_cost(self._candidates[i].plan))
        tried = tuple(
            TriedPlan(c.plan.planner, len(c.plan.groups), c.exposed_s, step_s, i == best)
            for i, (c, step_s) in enumerate(zip(self._candidates, slowest_s, strict=True))
        )
        return self._candidates[best].plan, tried

    def _step_s(self, marks: Sequence[Any]) -> float:
        return median(self._clock.seconds(a, b) for a, b in pairwise(marks))


def _host_cost(plan: GroupPlan) -> tuple[int, bool]:
    """The less, the cheaper: each message costs time, and to hold groups open does."""
    return plan.n_messages, not plan.ends_with_backward

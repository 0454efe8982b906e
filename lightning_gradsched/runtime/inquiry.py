"""What a step asks of all gradients at once, known from their owners before the means have come.

[Note: foresight] Clipping by norm and GradScaler ask the same in every step: so each rank notes
what was asked in the step before, and when all sums have come (see [Note: halves]) the owners
answer that for their parameters, in one all-reduce. Whoever asks then finds the answer there; to
ask is local, and ranks need not ask alike. What was not foreseen, in a first step, or after the
loss scale has changed, is answered by waiting for the gradients. So is all where ranks have
foreseen unlike things.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf, isfinite
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_gradsched.runtime.collectives import Collectives, Work
from lightning_gradsched.runtime.scatter import ScatteredBucket

WHAT = "what ranks tell of the gradients that they own"


class Questions(NamedTuple):
    """``checks``: whether gradients are finite. ``norm``: the order of their norms, None where none
    is asked; ``inv_scale``: by which they were multiplied before that, None where by nothing."""

    checks: bool = False
    norm: float | None = None
    inv_scale: float | None = None

    def as_numbers(self) -> list[float]:
        norm, inv_scale = (
            [0.0, 0.0] if value is None else [1.0, value] for value in (self.norm, self.inv_scale)
        )
        return [float(self.checks), *norm, *inv_scale]


class Inquiry:
    """Of one engine. ``asked``: in the step that runs, on this rank."""

    def __init__(self, collectives: Collectives) -> None:
        self.asked = Questions()
        self._collectives = collectives
        self._foreseen = Questions()
        self._first: dict[ScatteredBucket, int] = {}  # where its parameters are in the answers
        self._questions = self._answers = torch.empty(0, dtype=torch.float64)  # of all ranks
        self._work: Work | None = None
        self._is_known: bool | None = None  # whether all ranks have foreseen the same

    @torch.no_grad()
    def exchange(self, buckets: Sequence[ScatteredBucket]) -> None:
        """Begin to tell what was foreseen, of parameters that each rank has summed. Collective."""
        self._foreseen, self.asked, self._first = self.asked, Questions(), {}
        own, n_ranks = self._foreseen.as_numbers(), self._collectives.world_size
        n_params = sum(len(bucket.slots) for bucket in buckets)
        # Each place is one rank's to fill: the sum is what that one says.
        told = torch.zeros(n_ranks * len(own) + 2 * n_params, dtype=torch.float64)
        self._questions = told[: n_ranks * len(own)].view(n_ranks, -1)
        self._answers = told[n_ranks * len(own) :].view(2, -1)
        self._questions[self._collectives.rank] = torch.tensor(own, dtype=torch.float64)
        first = 0
        for bucket in buckets:
            self._first[bucket] = first
            places = [first + place for place in bucket.owned()]
            for row, values in enumerate(answers_of(bucket, self._foreseen)):
                if values:
                    self._answers[row, places] = torch.stack(values).double()
            first += len(bucket.slots)
        self._work = self._collectives.all_reduce(told)
        self._is_known = None

    def settle(self) -> None:
        """Have nothing under way, whether anybody asks or not."""
        if self._work is not None:
            self._collectives.watchdog.wait(self._work, WHAT)

    def all_finite(self, bucket: ScatteredBucket, places: Sequence[int]) -> bool | None:
        """Whether these gradients of ``bucket`` are, none of them scaled; None where not known."""
        self.asked = self.asked._replace(checks=True)
        if not self._foreseen.checks or not self._has_come():
            return None
        found = self._row(0, bucket)
        return all(isfinite(found[place]) for place in places)

    def norm(
        self, bucket: ScatteredBucket, place: int, order: float, inv_scale: float | None
    ) -> Tensor | None:
        """Of a gradient, multiplied by ``inv_scale`` where that is given; None where not known."""
        self.asked = self.asked._replace(norm=order, inv_scale=inv_scale)
        if (self._foreseen.norm, self._foreseen.inv_scale) != (order, inv_scale):
            return None
        return self._row(1, bucket)[place].to(bucket.flat.dtype) if self._has_come() else None

    def _has_come(self) -> bool:
        """Wait for the answers; whether they are to the same questions on all ranks."""
        if self._is_known is None and self._work is not None:
            self.settle()
            own = self._foreseen.as_numbers()
            self._is_known = all(questions == own for questions in self._questions.tolist())
        return bool(self._is_known)

    def _row(self, row: int, bucket: ScatteredBucket) -> Tensor:
        first = self._first[bucket]
        return self._answers[row, first : first + len(bucket.slots)]


def answers_of(bucket: ScatteredBucket, questions: Questions) -> tuple[list[Tensor], list[Tensor]]:
    """The largest magnitudes and the norms of what this rank owns; empty where not asked for.

    The very operations that torch's clipping would run on the means.
    """
    views = [bucket.views[place] for place in bucket.owned()]
    if not views:
        return [], []
    largest = list(torch._foreach_norm(views, inf)) if questions.checks else []
    if questions.norm is None:
        return largest, []
    if questions.inv_scale is not None:
        views = [view.clone() for view in views]
        unscale(views, torch.zeros(()), torch.tensor(questions.inv_scale))
    return largest, list(torch._foreach_norm(views, questions.norm))


unscale: Callable[[list[Tensor], Tensor, Tensor], None] = (
    torch._amp_foreach_non_finite_check_and_unscale_
)

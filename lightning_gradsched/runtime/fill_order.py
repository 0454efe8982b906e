"""Whether groups fill up in the order in which a static schedule launches them."""

from __future__ import annotations

import hashlib

from lightning_gradsched.core.schedule import FillOrder, Verdict, judge
from lightning_gradsched.runtime.collectives import Collectives

# Steps between two looks over all ranks, each one collective of three numbers a step.
WATCHED_STEPS = 20


class FillOrderWatch:
    """Notes the order of each step; every so many steps the ranks judge it together."""

    def __init__(self, collectives: Collectives) -> None:
        self._collectives = collectives
        self._replanned = False
        self.restart()

    def restart(self) -> None:
        """Forget what was seen of another plan."""
        self._digests: list[int] = []
        self._stalled: list[int] = []
        self._filled: list[int] = []
        self._waited = False

    def filled(self, group: int, *, waits: bool) -> None:
        """``group`` is full; ``waits``: groups before it in the schedule are not."""
        self._filled.append(group)
        self._waited |= waits

    @property
    def is_judged_next(self) -> bool:
        """Whether the next ``step_ended`` comes to a collective."""
        return len(self._digests) + 1 >= WATCHED_STEPS

    def step_ended(self) -> Verdict:
        """What to do about the schedule; the same on all ranks. Collective."""
        digest = hashlib.sha256(repr(self._filled).encode()).digest()[:7]
        self._digests.append(int.from_bytes(digest, "big"))
        self._stalled.append(int(self._waited))
        self._filled, self._waited = [], False
        if len(self._digests) < WATCHED_STEPS:
            return Verdict.KEEP
        verdict = judge(self._agree())
        self.restart()
        if verdict is Verdict.REPLAN and self._replanned:
            return Verdict.NEGOTIATE  # a new plan was no help: let the ranks go by what is full
        self._replanned |= verdict is Verdict.REPLAN
        return verdict

    def _agree(self) -> list[FillOrder]:
        n = len(self._digests)
        local = [*self._stalled, *self._digests, *(-digest for digest in self._digests)]
        most = self._collectives.max(local)
        stalled, high, negative_low = most[:n], most[n : 2 * n], most[2 * n :]
        return [
            FillOrder(stalled=bool(s), alike=h == -low)
            for s, h, low in zip(stalled, high, negative_low, strict=True)
        ]

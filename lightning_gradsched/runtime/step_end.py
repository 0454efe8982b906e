"""What the ranks decide together when a backward has been reduced, and what follows from it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from torch import Tensor

from lightning_gradsched.core.plan import GroupPlan
from lightning_gradsched.core.report import GroupInfo
from lightning_gradsched.core.schedule import ReductionSchedule
from lightning_gradsched.runtime import consensus
from lightning_gradsched.runtime.collectives import Collectives
from lightning_gradsched.runtime.launch_rule import LaunchRule
from lightning_gradsched.runtime.notice import Notice
from lightning_gradsched.runtime.planning import Planning
from lightning_gradsched.runtime.recorder import StepRecords
from lightning_gradsched.runtime.reducer import Reducer
from lightning_gradsched.runtime.signals import Signal
from lightning_gradsched.runtime.trainable import Trainable


class StepEnd:
    """Follows what is signalled, measured and unfrozen: the next backward may get another plan.

    ``divisor``: called once after each reduction; by how many ranks its sum is to be divided, where
    not by all.
    """

    def __init__(
        self,
        collectives: Collectives,
        reducer: Reducer,
        planning: Planning,
        rule: LaunchRule,
        trainable: Trainable,
        records: StepRecords,
        divisor: Callable[[], int | None],
    ) -> None:
        self._collectives = collectives
        self._reducer = reducer
        self._launches = reducer.launches
        self._planning = planning
        self._rule = rule
        self._trainable = trainable
        self._records = records
        self._divisor = divisor
        self.notice = Notice()

    def start(self) -> None:
        """Plan for all that is reduced; what was measured of less is forgotten."""
        self._planning.start(self._trainable.params, self._trainable.sparse)
        self._reducer.profiler = self._planning.profiler

    def plan(self, seen: Sequence[Sequence[str]]) -> tuple[GroupPlan, ReductionSchedule]:
        """The plan of the backward that begins; see ``Planning.make``. Collective."""
        plan, schedule = self._planning.make(seen)
        self._records.start(_group_infos(plan, schedule, self._trainable.params))
        self._rule.plan_made()
        return plan, schedule

    def to_say(self) -> Collection[Signal]:
        """What this rank signals with the backward that runs; see [Note: signals]."""
        is_due = self._planning.is_due_next or self._rule.is_judged_next
        plans = Signal.PLANS if is_due else Signal.KEEPS
        said = {plans}
        if self._trainable.has_grown:
            said.add(Signal.UNFROZEN)
        if self.notice.given:
            said.add(Signal.NOTICE)
        return said

    def follow(self) -> None:
        """After each reduction, on all ranks.

        Raises:
            ConsensusError: on every rank, if they have unfrozen unlike parameters, or if some ranks
                plan anew here and others do not.
        """
        heard = self._heard()
        if self._collectives.on_cuda:
            self.notice.reduced_on_device(self._launches.place_of(Signal.NOTICE))
        else:
            self.notice.reduced(heard)
        if heard >= {Signal.PLANS, Signal.KEEPS}:
            consensus.raise_out_of_step(self._collectives, self._reducer.n_reduced)
        factor = self._collectives.world_size / (self._divisor() or self._collectives.world_size)
        if factor != 1:
            self._launches.scale(factor)
        self._launches.recorder = self._records.turn(self._launches.recorder)
        if Signal.UNFROZEN in heard:
            self._grow(factor)
        # Both, as they are collective.
        elif self._planning.step_ended() | self._rule.step_ended():
            self._reducer.forget_plan()
            self._launches.recorder = None  # a step that makes a plan is like no other
        self._reducer.profiler = self._planning.profiler

    def begin_with(self) -> None:
        """Before a backward of a module all of whose parameters were frozen at first. Collective
        where this rank trains some now: there was no group to signal it with."""
        if not self._trainable.params and self._trainable.has_grown:
            self._reducer.settle()
            self._reducer.add(self._trainable.grow(), sparse=self._trainable.sparse)
            self.start()

    def _heard(self) -> frozenset[Signal]:
        # On a GPU the host would wait for it: only while there may be something to hear.
        may_change = self._trainable.can_grow or not (
            self._planning.is_settled and self._rule.is_settled
        )
        if self._collectives.on_cuda and not may_change:
            return frozenset()
        return self._launches.heard()

    def _grow(self, factor: float) -> None:
        """See [Note: unfreezing]."""
        found = self._trainable.grow()
        self._launches.recorder = None
        self._reducer.add_late(found, sparse=self._trainable.sparse, factor=factor)
        self.start()


def _group_infos(
    plan: GroupPlan, schedule: ReductionSchedule, params: Mapping[str, Tensor]
) -> list[GroupInfo]:
    return [
        GroupInfo(str(group), plan.groups[group], sum(params[n].nbytes for n in plan.groups[group]))
        for group in schedule.order
    ]

"""What an engine tells of itself: what was measured, planned and predicted, and what steps took."""

from __future__ import annotations

from lightning_gradsched.core.plan import GroupPlan
from lightning_gradsched.core.profile import BackwardProfile, NetworkProfile
from lightning_gradsched.core.report import OverlapReport, TriedPlan
from lightning_gradsched.core.schedule import ReductionSchedule
from lightning_gradsched.core.timeline import Timeline
from lightning_gradsched.runtime.collectives import Collectives
from lightning_gradsched.runtime.launch_rule import LaunchRule
from lightning_gradsched.runtime.planning import Planning
from lightning_gradsched.runtime.recorder import StepRecords
from lightning_gradsched.runtime.reducer import Reducer


class Inspection:
    """The part of ``GradientScheduler`` that changes nothing. Local, but for ``across_ranks``."""

    _collectives: Collectives
    _planning: Planning
    _records: StepRecords
    _reducer: Reducer
    _rule: LaunchRule

    @property
    def plan(self) -> GroupPlan | None:
        """The groups that all ranks agreed on; None before the first backward."""
        return self._planning.plan

    @property
    def schedule(self) -> ReductionSchedule | None:
        """The order of launches and waits; None before the first backward."""
        return self._planning.schedule

    @property
    def schedule_in_force(self) -> str:
        """``"static"`` or ``"negotiated"``: what ``schedule="auto"`` has come to so far."""
        return self._rule.name

    @property
    def profile(self) -> BackwardProfile | None:
        """What the plan was made from; None before it is measured, or where no planner asks."""
        return self._planning.profile

    @property
    def network(self) -> NetworkProfile | None:
        """What a planner that needs it has measured of the network."""
        return self._planning.network

    @property
    def reduction(self) -> str:
        """How gradients are summed: ``"flat"`` or ``"hierarchical"``."""
        return self._planning.reduction.name

    @property
    def predicted(self) -> Timeline | None:
        """The step that the cost model expects of the plan in force; None without a measurement."""
        return self._planning.predicted()

    @property
    def tried(self) -> tuple[TriedPlan, ...]:
        """The plans that ``planner="auto"`` has tried, with their step times; empty before."""
        return self._planning.tried

    def timelines(self) -> list[Timeline]:
        """The measured steps, oldest first; at most the last 16."""
        return self._records.timelines()

    def report(self, *, across_ranks: bool = False) -> OverlapReport:
        """What the recorded steps took and how much communication was hidden.

        Args:
            across_ranks: compare the transfers of all ranks, so that a straggler is told from a
                slow network, and by number. Then all ranks must call it alike, between two
                backwards and before ``detach``; each gets the report of its own steps.

        Raises:
            GradSchedError: no step has been recorded yet, or detached.
            ConsensusError: on every rank, if ``across_ranks`` and they have recorded unlike steps.
        """
        if across_ranks:
            self._reducer.settle()  # before collectives of ours come between
        fastest = self._records.fastest(self._collectives) if across_ranks else None
        return self._records.report(
            fastest=fastest,
            predicted=self.predicted if self._records.are_current else None,
            cost=self._planning.reduction.cost if self.network is not None else None,
            tried=self.tried,
            bounds=self._planning.bounds if self.network is not None else None,
        )

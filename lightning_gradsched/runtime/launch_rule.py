"""Whether full groups leave in the plan's order or as the ranks negotiate."""

from __future__ import annotations

import logging
import weakref

from lightning_gradsched.config import GradSchedConfig
from lightning_gradsched.core.schedule import Verdict
from lightning_gradsched.runtime.collectives import Collectives
from lightning_gradsched.runtime.fill_order import WATCHED_STEPS, FillOrderWatch
from lightning_gradsched.runtime.launches import Launches
from lightning_gradsched.runtime.readiness import Negotiation

logger = logging.getLogger(__name__)


class LaunchRule:
    """Has ``launches`` follow ``config.schedule``, by ``"auto"`` as the ranks judge together."""

    def __init__(
        self, config: GradSchedConfig, collectives: Collectives, launches: Launches
    ) -> None:
        self._collectives = collectives
        self._launches = launches
        self._stall_timeout_s = config.stall_timeout_s
        self._negotiation: Negotiation | None = None
        self._watch: FillOrderWatch | None = None
        if config.schedule == "negotiated":
            self._negotiate()
        elif config.schedule == "auto":
            self._watch = launches.fill_order = FillOrderWatch(collectives)

    @property
    def name(self) -> str:
        return "static" if self._negotiation is None else "negotiated"

    @property
    def is_settled(self) -> bool:
        """Whether no agreement on it is to come."""
        return self._watch is None

    @property
    def is_judged_next(self) -> bool:
        """Whether ``step_ended`` comes to a collective after the backward that runs. Local."""
        return self._watch is not None and self._watch.is_judged_next

    def plan_made(self) -> None:
        """Forget what was seen of another plan."""
        if self._watch is not None:
            self._watch.restart()

    def step_ended(self) -> bool:
        """Whether the next backward shall ask for another plan. Collective every so many steps."""
        verdict = Verdict.KEEP if self._watch is None else self._watch.step_ended()
        if verdict is Verdict.NEGOTIATE:
            self._watch = self._launches.fill_order = None
            self._negotiate()
            if self._collectives.rank == 0:
                logger.warning(
                    "full groups waited for their turn in half or more of the last %d steps: no one"
                    " order suits the ranks' graphs, so from now on they negotiate."
                    " schedule='negotiated' does so from the first step.",
                    WATCHED_STEPS,
                )
        return verdict is Verdict.REPLAN

    def close(self) -> None:
        if self._negotiation is not None:
            self._negotiation.close()

    def _negotiate(self) -> None:
        """Collective."""
        control = self._collectives.control_group()
        self._negotiation = Negotiation(control, self._stall_timeout_s)
        self._launches.negotiate(self._negotiation)
        # The thread holds the negotiation, but nothing of this; so it ends with this or at exit.
        weakref.finalize(self, self._negotiation.close)

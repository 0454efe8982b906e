"""Optimizers whose update of what is under way may come later."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch.optim import Optimizer

from lightning_gradsched.runtime.open_groups import OpenGroups
from lightning_gradsched.runtime.step_in_part import StepInPart


class OverlappedOptimizer(StepInPart):
    """Has ``optimizer.step()`` pass over what is open, from inside of it.

    Raises:
        GradSchedError: ``optimizer`` is not known to update each parameter by itself.
    """

    def __init__(
        self, optimizer: Optimizer, open_groups: OpenGroups, trusted: Collection[str]
    ) -> None:
        super().__init__(optimizer, open_groups.pass_over, trusted, "overlap_forward")
        self._open_groups = open_groups
        self._handles += [
            optimizer.register_state_dict_pre_hook(self._before_state),
            optimizer.register_load_state_dict_pre_hook(self._before_state),
        ]

    def _before_state(self, *_: Any) -> None:
        self._open_groups.flush()

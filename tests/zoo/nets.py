"""Networks for the tests, small or broken."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from zoo.net.edsr import EDSR


class PoisonedOnRankOne(EDSR):
    """Returns NaN on rank 1 alone, from its third training step on."""

    n_training_steps = 0

    def forward(self, low: Tensor) -> Tensor:
        high = super().forward(low)
        self.n_training_steps += self.training
        poisoned = os.environ.get("LOCAL_RANK") == "1" and self.n_training_steps >= 3
        return high * torch.nan if poisoned else high

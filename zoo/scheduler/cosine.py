"""Cosine decay of the learning rate to zero."""

from __future__ import annotations

import math
from functools import partial

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def cosine_factor(step: int, n_steps: int) -> float:
    """(1 + cos(pi step / n_steps)) / 2, and 0 from `n_steps` on.

    Loshchilov and Hutter 2017, arXiv 1608.03983, equation 5, without restarts.

    >>> [cosine_factor(step, 4) for step in (0, 2, 4, 6)]
    [1.0, 0.5, 0.0, 0.0]
    """
    return (1.0 + math.cos(math.pi * min(step / n_steps, 1.0))) / 2.0


class CosineDecay(LambdaLR):
    """The optimizer's rate times `cosine_factor` of the steps taken.

    torch's `CosineAnnealingLR` keeps its horizon in checkpoints, so that a run which is resumed for
    longer would climb back to the full rate. Here the horizon is the configuration's: a resumed run
    goes on as if it had been planned so.
    """

    def __init__(self, optimizer: Optimizer, n_steps: int) -> None:
        super().__init__(optimizer, partial(cosine_factor, n_steps=n_steps))

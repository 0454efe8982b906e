"""Cosine decay of the learning rate to zero."""

from __future__ import annotations

import math
from functools import partial

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from zoo.scheduler.warmup import warmup_factor


def cosine_factor(step: int, n_steps: int, warmup_steps: int = 0) -> float:
    """(1 + cos(pi t / T)) / 2 and 0 from T on; t and T from the end of a linear warm-up.

    Loshchilov and Hutter 2017, arXiv 1608.03983, equation 5, without restarts.

    >>> [cosine_factor(step, 4) for step in (0, 2, 4, 6)]
    [1.0, 0.5, 0.0, 0.0]
    >>> [cosine_factor(step, 8, warmup_steps=4) for step in (0, 3, 6, 8)]
    [0.25, 1.0, 0.5, 0.0]
    """
    if step < warmup_steps:
        return warmup_factor(step, warmup_steps)
    elapsed = (step - warmup_steps) / max(n_steps - warmup_steps, 1)
    return (1.0 + math.cos(math.pi * min(elapsed, 1.0))) / 2.0


class CosineDecay(LambdaLR):
    """The optimizer's rate times `cosine_factor` of the steps taken.

    torch's `CosineAnnealingLR` keeps its horizon in checkpoints, so that a run which is resumed for
    longer would climb back to the full rate. Here the horizon is the configuration's: a resumed run
    goes on as if it had been planned so.
    """

    def __init__(self, optimizer: Optimizer, n_steps: int, warmup_steps: int = 0) -> None:
        super().__init__(
            optimizer, partial(cosine_factor, n_steps=n_steps, warmup_steps=warmup_steps)
        )

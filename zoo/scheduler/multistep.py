"""Learning rate that falls at given steps."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import partial

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from zoo.scheduler.warmup import warmup_factor


def multistep_factor(
    step: int, milestones: Sequence[int], gamma: float, warmup_steps: int
) -> float:
    """Warm-up, then gamma to the number of milestones passed since.

    >>> [multistep_factor(step, (10, 20), 0.5, 4) for step in (1, 4, 13, 14, 24)]
    [0.5, 1.0, 1.0, 0.5, 0.25]
    """
    if step < warmup_steps:
        return warmup_factor(step, warmup_steps)
    return gamma ** bisect_right(milestones, step - warmup_steps)


class MultiStepDecay(LambdaLR):
    """The optimizer's rate times `multistep_factor` of the steps taken.

    Milestones count from the end of the warm-up, as in DeepCAM's reference. As with `CosineDecay`
    they are the configuration's, not the checkpoint's.

    Raises:
        ValueError: milestones do not rise.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        milestones: Sequence[int],
        gamma: float = 0.1,
        warmup_steps: int = 0,
    ) -> None:
        if list(milestones) != sorted(set(milestones)):
            raise ValueError(f"expected rising milestones, got {list(milestones)}; sort them")
        super().__init__(
            optimizer,
            partial(
                multistep_factor,
                milestones=tuple(milestones),
                gamma=gamma,
                warmup_steps=warmup_steps,
            ),
        )

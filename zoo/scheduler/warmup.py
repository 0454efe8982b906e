"""Linear warm-up of the learning rate, before whatever schedule follows."""

from __future__ import annotations


def warmup_factor(step: int, warmup_steps: int) -> float:
    """1 / warmup_steps at step 0, growing linearly to 1.

    Goyal et al. 2017, arXiv 1706.02677, section 2.2. Not from zero: a step would be wasted.

    >>> [warmup_factor(step, 4) for step in (0, 1, 3, 9)]
    [0.25, 0.5, 1.0, 1.0]
    """
    return min((step + 1) / warmup_steps, 1.0) if warmup_steps else 1.0

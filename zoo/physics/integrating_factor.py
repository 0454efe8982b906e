"""A step in time of stiff linear decay and anything else."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def runge_kutta_step(
    state: Tensor, tendency: Callable[[Tensor], Tensor], half_decay: Tensor, step: float
) -> Tensor:
    """Runge and Kutta's fourth order for ds/dt = -c s + tendency(s), the decay exact.

    Cox and Matthews 2002, doi 10.1006/jcph.2002.6995, section 2 (integrating factors).

    Args:
        half_decay: exp(-c step / 2), broadcast against `state`.
    """
    half = 0.5 * step
    first = tendency(state)
    second = tendency(half_decay * (state + half * first))
    third = tendency(half_decay * state + half * second)
    fourth = tendency(half_decay * (half_decay * state + step * third))
    ends = half_decay**2 * (state + step / 6.0 * first)
    return ends + step / 6.0 * (2.0 * half_decay * (second + third) + fourth)

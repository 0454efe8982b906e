"""The least that a step can take, whatever the groups and their order: two bounds.

[Note: the cut bound] The gradients of some parameters exist only when backward has come to the
first of them, and are needed when the next forward comes to the first use of one. What is computed
outside of that window cannot hide their communication, so a step takes at least

    compute before the window + their communication + compute after it,

for every window. Over a plain chain of layers 1..n these are the cuts at each layer j: compute of
layers j..n (backward and forward) + communication of layers 1..j.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lightning_gradsched.core.cost import CostModel, least_all_reduce_s
from lightning_gradsched.core.profile import BackwardProfile


class Bounds(NamedTuple):
    """``step_s``: without staleness, reductions going on into the next forward; see
    [Note: the cut bound]. ``backward_s``: where a step's reductions must end with its backward."""

    step_s: float
    backward_s: float


def bounds(profile: BackwardProfile, cost: CostModel) -> Bounds:
    """Seconds that forward and backward take at least, on ranks alike.

    Every transfer has the link to itself. Neither the optimizer nor the data count.

    >>> from lightning_gradsched.core.cost import AlphaBeta
    >>> from lightning_gradsched.core.profile import ParamProfile
    >>> params = (
    ...     ParamProfile("head", 3, ready_s=1.0, needed_s=1.5),
    ...     ParamProfile("stem", 2, ready_s=4.0, needed_s=0.0),
    ... )
    >>> profile = BackwardProfile(params, forward_s=2.0, backward_s=4.0)
    >>> bounds(profile, AlphaBeta(alpha_s=0.0, beta_s_per_byte=1.0))
    Bounds(step_s=8.0, backward_s=8.0)
    >>> bounds(profile, AlphaBeta(alpha_s=0.0, beta_s_per_byte=2.0))
    Bounds(step_s=11.5, backward_s=13.0)
    """
    compute_s = profile.forward_s + profile.backward_s
    within_backward = [compute_s, *_cuts_of_backward(profile, cost)]
    return Bounds(max([compute_s, *_cuts(profile, cost)]), max(within_backward))


def _cuts_of_backward(profile: BackwardProfile, cost: CostModel) -> list[float]:
    """Forward, backward until a gradient is ready, then what it and all after it have to send."""
    left_nbytes = np.cumsum([float(p.nbytes) for p in reversed(profile.params)])[::-1]
    ready_s = np.array([p.ready_s for p in profile.params])
    cuts = profile.forward_s + ready_s + least_all_reduce_s(cost, left_nbytes)
    return [float(cut) for cut in cuts]


def _cuts(profile: BackwardProfile, cost: CostModel) -> list[float]:
    """For each first gradient, the worst of all last uses."""
    params = profile.params
    ready_s, needed_s, nbytes = (
        np.array([getattr(p, field) for p in params], dtype=float)
        for field in ("ready_s", "needed_s", "nbytes")
    )
    by_need = np.argsort(needed_s, kind="stable")
    ready_s, nbytes = ready_s[by_need], nbytes[by_need]
    after_s = np.maximum(0.0, profile.forward_s - needed_s[by_need])
    cuts = []
    for begin_s in np.unique(ready_s):
        inside_nbytes = np.cumsum(np.where(ready_s >= begin_s, nbytes, 0.0))
        cuts.append(float(np.max(begin_s + least_all_reduce_s(cost, inside_nbytes) + after_s)))
    return cuts

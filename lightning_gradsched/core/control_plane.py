"""What it costs ranks to agree, step by step, on which gradients are ready everywhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil, log, log2
from typing import NamedTuple

from lightning_gradsched.core.profile import BackwardProfile


class ControlPlane(NamedTuple):
    """``service_s``: what the busiest rank does for one tensor, one tensor after the other.

    ``latency_s``: from then until every rank knows. ``cycle_work_s``: what each rank does in each
    of the cycles, one every ``cycle_s`` of the step, whatever is ready.
    """

    service_s: float = 0.0
    latency_s: float = 0.0
    cycle_work_s: float = 0.0
    cycle_s: float = 1.0

    def busiest_rank_s(self, n_tensors: int, step_s: float) -> float:
        """Control work of the busiest rank in a step."""
        return n_tensors * self.service_s + step_s / self.cycle_s * self.cycle_work_s


@dataclass(frozen=True, slots=True)
class ControlCosts:
    """The unit costs: assumptions, but for ``cycle_s`` from Laanait et al.'s job script.

    ``message_s``: one request read, matched with its tensor and answered by a rank: an optimistic
    1 us, the time of a small message's receive and a table look-up; nobody's measurement.
    """

    message_s: float = 1e-6
    cycle_s: float = 2e-3
    radix: int = 4


def coordinator(n_ranks: int, alpha_s: float, costs: ControlCosts) -> ControlPlane:
    """Horovod's: rank 0 hears of each tensor from each rank: N messages a tensor, read serially.

    The messages travel in collective gathers and broadcasts (Horovod pull request 276), so their
    way is logarithmic; their reading is not.
    """
    latency_s = costs.cycle_s / 2 + _there_and_back_s(n_ranks, alpha_s)
    return ControlPlane(n_ranks * costs.message_s, latency_s)


def tree(n_ranks: int, alpha_s: float, costs: ControlCosts) -> ControlPlane:
    """Kurth et al.'s (2018): a tree of radix r; each rank handles r + 1 messages a tensor."""
    hops = ceil(round(log(n_ranks, costs.radix), 9))
    hop_s = alpha_s + costs.radix * costs.message_s
    latency_s = costs.cycle_s / 2 + 2 * hops * hop_s
    return ControlPlane((costs.radix + 1) * costs.message_s, latency_s)


def bits(n_ranks: int, alpha_s: float, costs: ControlCosts) -> ControlPlane:
    """Laanait et al.'s (2019): readiness bits, one small all-reduce a cycle, no special rank.

    A group waits half a cycle on average until its bit is looked at.
    """
    all_reduce_s = _there_and_back_s(n_ranks, alpha_s)
    latency_s = costs.cycle_s / 2 + all_reduce_s
    return ControlPlane(0.0, latency_s, cycle_work_s=all_reduce_s, cycle_s=costs.cycle_s)


def none(_n_ranks: int, _alpha_s: float, _costs: ControlCosts) -> ControlPlane:
    """gradsched's: the schedule was agreed before the step; nothing is said during it."""
    return ControlPlane()


CONTROL_PLANES: dict[str, Callable[[int, float, ControlCosts], ControlPlane]] = {
    "none": none,
    "bits": bits,
    "tree": tree,
    "coordinator": coordinator,
}


def agreed(
    profile: BackwardProfile, control: ControlPlane, *, tensors_per_param: float = 1.0
) -> BackwardProfile:
    """``profile`` with each gradient ready when every rank knows that it is.

    The busiest rank is a queue: a tensor's service begins when the tensor is ready and those
    before it are served. So work that is shorter than backward hides behind it, and work that is
    longer becomes the step.

    >>> from lightning_gradsched.core.profile import ParamProfile
    >>> params = ParamProfile("a", 4, ready_s=1.0), ParamProfile("b", 4, ready_s=2.0)
    >>> control = ControlPlane(service_s=3.0, latency_s=0.5)
    >>> [param.ready_s for param in agreed(BackwardProfile(params), control).params]
    [4.5, 7.5]
    """
    params = []
    free_s = 0.0
    for param in profile.params:
        free_s = max(free_s, param.ready_s) + control.service_s * tensors_per_param
        params.append(param._replace(ready_s=free_s + control.latency_s))
    return replace(profile, params=tuple(params))


def _there_and_back_s(n_ranks: int, alpha_s: float) -> float:
    return 2 * ceil(log2(n_ranks)) * alpha_s

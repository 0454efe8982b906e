"""Why a group's communication was exposed: one reason a group.

[Note: precedence] Several reasons may hold at once; the first of these is given, because what comes
before would make the advice of what comes after useless:

1. hidden: nothing was exposed;
2. straggler: another rank came late to the transfer. No grouping changes that;
3. waited for order: alone it would have been hidden, and it waited longer for its turn than for the
   link. The launch order comes before the sizes;
4. latency-bound: no less for fewer bytes, so a smaller group would not help;
5. last group, ready too late to hide: even alone on the link it would have been exposed;
6. waited for the link: what is left.
"""

from __future__ import annotations

from typing import NamedTuple

from lightning_gradsched.core.cost import CostModel

HIDDEN = "hidden"
STRAGGLER = "straggler"
WAITED_FOR_ORDER = "waited for order"
LATENCY_BOUND = "latency-bound"
LAST_GROUP = "last group"
READY_LATE = "ready too late to hide"
WAITED_FOR_LINK = "waited for the link"
REASONS = (
    HIDDEN,
    STRAGGLER,
    WAITED_FOR_ORDER,
    LATENCY_BOUND,
    LAST_GROUP,
    READY_LATE,
    WAITED_FOR_LINK,
)

# Of a transfer's cost; from here on latency is most of it.
LATENCY_SHARE = 0.5
# Of what waiting for a rank is compared with; from here on it is most of it.
STRAGGLER_SHARE = 0.5


class Fastest(NamedTuple):
    """The shortest time from launch to end of one group's transfer: what the network needed.

    All ranks leave an all-reduce together, so ``rank``, whose time in this step it was, came to it
    last. None where ranks were not compared: then it is this rank's shortest of several steps. A
    group that is launched behind others waits for the link in this time too; so no more is put down
    to a late rank than what passed, the link free, before that rank came.
    """

    seconds: float
    rank: int | None = None


class Course(NamedTuple):
    """How one group went through one step: when it was ready, then seconds of each part in turn."""

    ready_s: float
    order_s: float
    fill_s: float
    link_s: float
    transfer_s: float

    def finish_alone_s(self) -> float:
        """When it would have finished if nothing had been before it."""
        return self.ready_s + self.fill_s + self.transfer_s


def reason_of(
    course: Course,
    exposed_s: float,
    fastest: Fastest,
    *,
    backward_end_s: float,
    is_latency_bound: bool,
    is_last: bool,
) -> str:
    """The first reason that holds, see [Note: precedence]."""
    hidden_alone = course.finish_alone_s() <= backward_end_s
    if exposed_s == 0:
        return HIDDEN
    if came_late(course.transfer_s, exposed_s, fastest):
        return STRAGGLER
    if hidden_alone and course.order_s >= course.link_s:
        return WAITED_FOR_ORDER
    if is_latency_bound:
        return LATENCY_BOUND
    if not hidden_alone:
        return LAST_GROUP if is_last else READY_LATE
    return WAITED_FOR_LINK


def came_late(transfer_s: float, exposed_s: float, fastest: Fastest) -> bool:
    """Whether waiting for another rank is most of what was exposed.

    Where ranks were not compared, a slower network looks the same: then it must be most of the
    transfer, which is the longer of the two.

    >>> came_late(transfer_s=10.0, exposed_s=4.0, fastest=Fastest(7.0, rank=1))
    True
    >>> came_late(transfer_s=10.0, exposed_s=4.0, fastest=Fastest(7.0))
    False
    """
    whole_s = transfer_s if fastest.rank is None else exposed_s
    return transfer_s - fastest.seconds >= STRAGGLER_SHARE * whole_s


def is_latency_bound(nbytes: int, cost: CostModel) -> bool:
    """Whether an all-reduce of nothing (or the least measured) costs most of that of ``nbytes``.

    >>> from lightning_gradsched.core.cost import AlphaBeta
    >>> [is_latency_bound(nbytes, AlphaBeta(1e-3, 1e-9)) for nbytes in (1_000_000, 1_000_001)]
    [True, False]
    """
    return bool(cost.all_reduce_s(0) >= LATENCY_SHARE * cost.all_reduce_s(nbytes))

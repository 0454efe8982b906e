"""What a schedule would do to one step: the timeline that a profile and a cost model predict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from lightning_gradsched.core.cost import CostModel
from lightning_gradsched.core.plan import GroupPlan, check_plan
from lightning_gradsched.core.profile import BackwardProfile
from lightning_gradsched.core.report import BACKWARD, BETWEEN
from lightning_gradsched.core.schedule import ReductionSchedule
from lightning_gradsched.core.shards import half_nbytes
from lightning_gradsched.core.timeline import (
    COMMUNICATION,
    COMPUTE,
    QUEUE,
    Span,
    Timeline,
    first_half,
)
from lightning_gradsched.errors import PlanError

# A step with lag settles into its period in a few; bounded for rounding.
MOST_STEPS_TO_STEADY = 32


def simulate(
    schedule: ReductionSchedule, plan: GroupPlan, profile: BackwardProfile, cost: CostModel
) -> Timeline:
    """One rank's step when every rank is as fast as ``profile`` and transfers take turns.

    A group is launched when its turn comes: the last of its gradients is ready and every group
    before it in the schedule is launched. Its transfer begins when the link is free as well. Where
    the schedule leaves groups to the next forward, the timeline goes on to the end of that forward,
    which stands still while it waits, and no forward comes before its backward. Where the schedule
    lags, it goes on to the end of the next backward, and steps have found their period. The update
    of parameters and what else is between backward and forward takes no time. Backward ends with
    all first halves. As a forward waits for all that it uses, the link is free when the next
    backward begins: one step tells of all. Spans are the recorder's: the queue's goes on until the
    launch, that of each piece, or half, from its launch to its end, so a wait for the link is part
    of it, as where a library queues it.

    Raises:
        PlanError: the plan does not carry each parameter of the profile exactly once, or the
            schedule does not launch each group of the plan.

    >>> from lightning_gradsched.core.cost import AlphaBeta
    >>> from lightning_gradsched.core.profile import ParamProfile
    >>> from lightning_gradsched.core.schedule import lower
    >>> params = ParamProfile("head", 2, ready_s=1.0), ParamProfile("stem", 2, ready_s=4.0)
    >>> profile = BackwardProfile(params, forward_s=2.0, backward_s=4.0)
    >>> plan = GroupPlan("per_tensor", (("head",), ("stem",)))
    >>> timeline = simulate(lower(plan), plan, profile, AlphaBeta(1.0, 1.0))
    >>> [(s.start_s, s.end_s) for s in timeline.spans if s.track == "communication"]
    [(1.0, 4.0), (4.0, 7.0)]
    >>> timeline.exposed_s()
    3.0
    """
    check_plan(plan, profile)
    if len(schedule.order) != len(plan.groups):
        raise PlanError(
            f"expected a schedule of the {len(plan.groups)} groups of plan {plan.planner!r},"
            f" got one of {len(schedule.order)}: lower this plan"
        )
    if schedule.lag:
        return _lagged(schedule, plan, profile, cost)
    transfers = tuple(_transfers(schedule, plan, profile, cost))
    transfers += tuple(_gathers(schedule, plan, profile, cost, transfers))
    backward = Span(COMPUTE, BACKWARD, 0.0, profile.backward_s)
    if schedule.forward:
        return Timeline((backward, *_forward(schedule, plan, profile, transfers), *transfers))
    return Timeline((Span(COMPUTE, BETWEEN, -profile.forward_s, 0.0), backward, *transfers))


def _transfers(
    schedule: ReductionSchedule,
    plan: GroupPlan,
    profile: BackwardProfile,
    cost: CostModel,
    link_free_s: float = 0.0,
) -> Iterator[Span]:
    """Of a group that travels in pieces, each. Until ``link_free_s`` the step before is sent."""
    of_name = {param.name: param for param in profile.params}
    n_pieces = Counter(schedule.launches)
    launched: set[int] = set()
    launch_s = 0.0
    for number in schedule.launches:
        members = [of_name[name] for name in plan.groups[number]]
        ready_s = max(member.ready_s for member in members)
        launch_s = max(ready_s, launch_s)
        nbytes = _message_nbytes(plan, number, [m.nbytes for m in members]) / n_pieces[number]
        link_free_s = max(launch_s, link_free_s) + float(cost.all_reduce_s(nbytes))
        label = first_half(str(number)) if plan.owners_of(number) else str(number)
        if number not in launched:
            launched.add(number)
            yield Span(QUEUE, str(number), ready_s, launch_s)
        yield Span(COMMUNICATION, label, launch_s, link_free_s)


def _message_nbytes(plan: GroupPlan, group: int, nbytes: Sequence[int]) -> float:
    """Of the all-reduce that takes as long as what is sent of ``group`` at once."""
    ranks = plan.owners_of(group)
    return half_nbytes(nbytes, ranks, plan.n_ranks) if ranks else sum(nbytes)


def _gathers(
    schedule: ReductionSchedule,
    plan: GroupPlan,
    profile: BackwardProfile,
    cost: CostModel,
    transfers: Sequence[Span],
) -> Iterator[Span]:
    """The second halves, when all that was launched in backward, and a short word, have come."""
    if not schedule.gathers:
        return
    nbytes_of = {param.name: param.nbytes for param in profile.params}
    ended_s = max(profile.backward_s, *(span.end_s for span in transfers))
    launch_s = link_free_s = ended_s + float(cost.all_reduce_s(0))
    for number in schedule.gathers:
        nbytes = [nbytes_of[name] for name in plan.groups[number]]
        link_free_s += float(cost.all_reduce_s(_message_nbytes(plan, number, nbytes)))
        yield Span(COMMUNICATION, str(number), launch_s, link_free_s)


def _lagged(
    schedule: ReductionSchedule, plan: GroupPlan, profile: BackwardProfile, cost: CostModel
) -> Timeline:
    """A step of the steady state, to the end of the next backward, which waits for its groups.

    At the end of its own backward it has waited for those of the step before, until ``ended_s``.
    """
    ended_s, link_free_s = profile.backward_s, 0.0
    for _ in range(MOST_STEPS_TO_STEADY):
        transfers = tuple(_transfers(schedule, plan, profile, cost, link_free_s))
        next_began_s = ended_s + profile.forward_s
        finish_s = max((s.end_s for s in transfers if s.track == COMMUNICATION), default=0.0)
        state = (
            max(profile.backward_s, finish_s - next_began_s),
            max(0.0, finish_s - next_began_s),
        )
        if state == (ended_s, link_free_s):
            break
        ended_s, link_free_s = state
    next_ended_s = next_began_s + profile.backward_s
    return Timeline(
        (
            Span(COMPUTE, BACKWARD, 0.0, ended_s),
            Span(COMPUTE, BETWEEN, ended_s, next_began_s),
            Span(COMPUTE, BACKWARD, next_began_s, next_ended_s),
            *transfers,
        )
    )


def _forward(
    schedule: ReductionSchedule,
    plan: GroupPlan,
    profile: BackwardProfile,
    transfers: Sequence[Span],
) -> Iterator[Span]:
    finish_s = {span.label: span.end_s for span in transfers if span.track == COMMUNICATION}
    uses = first_uses_s(plan, profile)
    began_s = max(profile.backward_s, *(finish_s[str(group)] for group in schedule.waits))
    if schedule.gathers:
        began_s = next(
            span.start_s
            for span in transfers
            if span.track == COMMUNICATION and span.label == str(schedule.gathers[0])
        )
    waits = [(uses[group], finish_s[str(group)]) for group in schedule.left_open]
    return waiting_forward(began_s, profile.forward_s, waits)


def first_uses_s(plan: GroupPlan, profile: BackwardProfile) -> list[float]:
    """When a forward first uses a parameter of each group, since it began."""
    needed_s = {param.name: param.needed_s for param in profile.params}
    return [min(needed_s[name] for name in group) for group in plan.groups]


def waiting_forward(
    began_s: float, forward_s: float, waits: Iterable[tuple[float, float]]
) -> Iterator[Span]:
    """Its compute, in parts: between them it waits for a group whose parameters come next.

    ``waits``: after how much of its compute it needs a group, and when that has come; in the order
    of the first.
    """
    done_s = 0.0  # of its compute
    for use_s, come_s in waits:
        reached_s = began_s + max(0.0, use_s - done_s)
        if come_s > reached_s:
            if reached_s > began_s:
                yield Span(COMPUTE, BETWEEN, began_s, reached_s)
            began_s, done_s = come_s, max(done_s, use_s)
    yield Span(COMPUTE, BETWEEN, began_s, began_s + max(0.0, forward_s - done_s))

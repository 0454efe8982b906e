"""What a schedule would do to one step: the timeline that a profile and a cost model predict."""

from __future__ import annotations

from collections.abc import Iterator

from lightning_gradsched.core.cost import CostModel
from lightning_gradsched.core.plan import GroupPlan, check_plan
from lightning_gradsched.core.profile import BackwardProfile
from lightning_gradsched.core.report import BACKWARD, BETWEEN
from lightning_gradsched.core.schedule import ReductionSchedule
from lightning_gradsched.core.timeline import COMMUNICATION, COMPUTE, QUEUE, Span, Timeline
from lightning_gradsched.errors import PlanError


def simulate(
    schedule: ReductionSchedule, plan: GroupPlan, profile: BackwardProfile, cost: CostModel
) -> Timeline:
    """One rank's step when every rank is as fast as ``profile`` and transfers take turns.

    A group is launched when its turn comes: the last of its gradients is ready and every group
    before it in the schedule is launched. Its transfer begins when the link is free as well. Spans
    are the recorder's: the queue's goes on until the launch, that of the communication from the
    launch to the end, so a wait for the link is part of it, as it is where a library queues it.

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
    if len(schedule.launches) != len(plan.groups):
        raise PlanError(
            f"expected a schedule of the {len(plan.groups)} groups of plan {plan.planner!r},"
            f" got one of {len(schedule.launches)}: lower this plan"
        )
    return Timeline(
        (
            Span(COMPUTE, BETWEEN, -profile.forward_s, 0.0),
            Span(COMPUTE, BACKWARD, 0.0, profile.backward_s),
            *_transfers(schedule, plan, profile, cost),
        )
    )


def _transfers(
    schedule: ReductionSchedule, plan: GroupPlan, profile: BackwardProfile, cost: CostModel
) -> Iterator[Span]:
    of_name = {param.name: param for param in profile.params}
    launch_s = link_free_s = 0.0
    for number in schedule.launches:
        members = [of_name[name] for name in plan.groups[number]]
        ready_s = max(member.ready_s for member in members)
        launch_s = max(ready_s, launch_s)
        seconds = float(cost.all_reduce_s(sum(member.nbytes for member in members)))
        link_free_s = max(launch_s, link_free_s) + seconds
        yield Span(QUEUE, str(number), ready_s, launch_s)
        yield Span(COMMUNICATION, str(number), launch_s, link_free_s)

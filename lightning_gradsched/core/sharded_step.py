"""A step of optimizers in shards: gradients in backward, updated weights over the next forward."""

from __future__ import annotations

from lightning_gradsched.core.cost import CostModel
from lightning_gradsched.core.plan import GroupPlan
from lightning_gradsched.core.profile import BackwardProfile
from lightning_gradsched.core.schedule import lower
from lightning_gradsched.core.simulate import first_uses_s, simulate, waiting_forward
from lightning_gradsched.core.timeline import COMMUNICATION, Span, Timeline

# An all-reduce scatters sums, then gathers them; weights are only gathered.
GATHER_SHARE = 0.5


def simulate_sharded(plan: GroupPlan, profile: BackwardProfile, cost: CostModel) -> Timeline:
    """Backward and the next forward of one rank, where each updates a part of the weights.

    The end of backward waits for all gradients. Then each group's weights are gathered, those that
    the forward uses first ahead, and the forward waits for those of a layer before that runs. Each
    weight is taken to have its gradient's bytes, and a gathering to cost half an all-reduce. The
    update itself takes no time.

    >>> from lightning_gradsched.core.cost import AlphaBeta
    >>> from lightning_gradsched.core.profile import ParamProfile
    >>> params = ParamProfile("head", 2, ready_s=1, needed_s=2), ParamProfile("stem", 2, ready_s=4)
    >>> plan = GroupPlan("per_tensor", (("head",), ("stem",)))
    >>> step = simulate_sharded(plan, BackwardProfile(params, 4, 4), AlphaBeta(0.0, 1.0))
    >>> [(s.label, s.start_s, s.end_s) for s in step.spans if s.track == "communication"]
    [('0', 1, 3.0), ('1', 4, 6.0), ('weights 1', 6.0, 7.0), ('weights 0', 7.0, 8.0)]
    >>> step.exposed_s(), step.extent_s()
    (3.0, 11.0)
    """
    reduced = simulate(lower(plan), plan, profile, cost)
    uses = first_uses_s(plan, profile)
    of_backward = tuple(span for span in reduced.spans if span.start_s >= 0)
    began_s = link_free_s = max(span.end_s for span in of_backward)
    nbytes_of = {param.name: param.nbytes for param in profile.params}
    gathered, waits = [], []
    for group in sorted(range(len(plan.groups)), key=lambda group: uses[group]):
        nbytes = sum(nbytes_of[name] for name in plan.groups[group])
        start_s = link_free_s
        link_free_s += GATHER_SHARE * float(cost.all_reduce_s(nbytes))
        gathered.append(Span(COMMUNICATION, f"weights {group}", start_s, link_free_s))
        waits.append((uses[group], link_free_s))
    forward = waiting_forward(began_s, profile.forward_s, waits)
    return Timeline((*of_backward, *forward, *gathered))

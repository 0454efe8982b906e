"""A profile on one rank, carried to many: how long the step gets, and through what."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from lightning_gradsched.core.control_plane import (
    CONTROL_PLANES,
    ControlCosts,
    ControlPlane,
    agreed,
)
from lightning_gradsched.core.cost import CostModel
from lightning_gradsched.core.forward_overlap import forward_overlap
from lightning_gradsched.core.networks import ALGORITHMS, Best, Network
from lightning_gradsched.core.plan import GroupPlan, Planner, ddp
from lightning_gradsched.core.profile import BackwardProfile
from lightning_gradsched.core.report import step_s_of
from lightning_gradsched.core.schedule import (
    ReductionSchedule,
    lower,
    lower_into_forward,
    lower_with_lag,
)
from lightning_gradsched.core.sharded_step import simulate_sharded
from lightning_gradsched.core.simulate import simulate
from lightning_gradsched.core.timeline import Timeline
from lightning_gradsched.errors import ProfileError

ALGORITHM_NAMES = ("best", *ALGORITHMS)

# Where reductions end: with their backward, in the next forward, or with the next backward; or with
# their backward, and updated weights come in the next forward.
MODES = ("backward", "overlap_forward", "gradient_lag", "shard_optimizer")

# Beyond any machine, and within what the formulas of jitter can resolve.
MAX_RANKS = 10_000_000


@dataclass(frozen=True, slots=True)
class ScalePoint:
    """One step on ``n_ranks``.

    ``compute_s``: of the mean rank. ``slowest_s``: of the slowest, for whom all wait.
    ``exposed_s``: what the step has beyond that. ``all_reduce_s``: all gradients as one message.
    ``control_s``: the busiest rank's control work, most of which may be hidden.
    """

    n_ranks: int
    control: str
    algorithm: str
    all_reduce_s: float
    compute_s: float
    slowest_s: float
    exposed_s: float
    control_s: float
    mode: str = "backward"

    @property
    def step_s(self) -> float:
        return self.slowest_s + self.exposed_s

    @property
    def efficiency(self) -> float:
        """Against one rank that waits for nobody; weak scaling."""
        return self.compute_s / self.step_s

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "step_s": self.step_s, "efficiency": self.efficiency}


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is scaled: a step, a machine, and how its gradients are grouped and reduced.

    ``tensors_per_param``: tensors that a control plane negotiates for one parameter of the
    profile, whose rows may be whole layers. ``mode``: of ``MODES``.
    """

    profile: BackwardProfile
    network: Network
    planner: Planner = ddp
    algorithm: str = "best"
    tensors_per_param: float = 1.0
    costs: ControlCosts = field(default_factory=ControlCosts)
    mode: str = "backward"

    def at(self, n_ranks: int, control: str) -> ScalePoint:
        """The expected step on ``n_ranks`` under a control plane of ``CONTROL_PLANES``.

        Every gradient comes as late as on the expected slowest rank.
        """
        slowest_s = (self.profile.forward_s + self.profile.backward_s) * self._slowness(n_ranks)
        step_s = step_s_of(self.timeline(n_ranks, control))
        cost = self._cost(n_ranks)
        plane = self._plane(n_ranks, control)
        nbytes = sum(param.nbytes for param in self.profile.params)
        return ScalePoint(
            n_ranks,
            control,
            algorithm=cost.name_for(nbytes) if isinstance(cost, Best) else self.algorithm,
            all_reduce_s=float(cost.all_reduce_s(nbytes)),
            compute_s=self.profile.forward_s + self.profile.backward_s,
            slowest_s=slowest_s,
            exposed_s=step_s - slowest_s,
            control_s=plane.busiest_rank_s(self.n_tensors, step_s),
            mode=self.mode,
        )

    def timeline(self, n_ranks: int, control: str) -> Timeline:
        """That step, simulated, from the beginning of its backward."""
        slow = stretched(self.profile, self._slowness(n_ranks))
        plane, cost = self._plane(n_ranks, control), self._cost(n_ranks)
        ready = agreed(slow, plane, tensors_per_param=self.tensors_per_param)
        if self.mode == "shard_optimizer":
            return simulate_sharded(self.planner(slow, cost), ready, cost)
        plan, schedule = self._planned(slow, cost)
        return simulate(schedule, plan, ready, cost)

    def _slowness(self, n_ranks: int) -> float:
        """Of the expected slowest rank, against the mean one."""
        return 1 + self.network.jitter.slowest_of(n_ranks)

    def _planned(
        self, profile: BackwardProfile, cost: CostModel
    ) -> tuple[GroupPlan, ReductionSchedule]:
        if self.mode == "overlap_forward":
            plan = forward_overlap(profile, cost)
            return plan, lower_into_forward(plan, profile)
        plan = self.planner(profile, cost)
        return plan, lower_with_lag(plan) if self.mode == "gradient_lag" else lower(plan)

    @property
    def n_tensors(self) -> int:
        return round(len(self.profile.params) * self.tensors_per_param)

    def _cost(self, n_ranks: int) -> CostModel:
        return ALGORITHMS.get(self.algorithm, Best)(self.network.fabric(n_ranks))

    def _plane(self, n_ranks: int, control: str) -> ControlPlane:
        if n_ranks == 1:
            return ControlPlane()
        return CONTROL_PLANES[control](n_ranks, self.network.message_alpha_s, self.costs)


def stretched(profile: BackwardProfile, factor: float) -> BackwardProfile:
    """``profile`` of a rank that computes ``factor`` times as long."""
    return replace(
        profile,
        params=tuple(
            p._replace(ready_s=p.ready_s * factor, needed_s=p.needed_s * factor)
            for p in profile.params
        ),
        forward_s=profile.forward_s * factor,
        backward_s=profile.backward_s * factor,
    )


def parse_ranks(text: str) -> tuple[int, ...]:
    """``A..B``: A, doubled until B, and B; or a list with commas.

    >>> parse_ranks("6..40")
    (6, 12, 24, 40)
    >>> parse_ranks("192,12")
    (12, 192)
    """
    if match := re.fullmatch(r"(\d+)\.\.(\d+)", text):
        counts = _doubled(int(match[1]), int(match[2]))
    elif re.fullmatch(r"\d+(,\d+)*", text):
        counts = tuple(sorted(set(map(int, text.split(",")))))
    else:
        counts = ()
    if not counts or counts[0] < 1 or counts[-1] > MAX_RANKS:
        raise ProfileError(
            f"expected ranks as FIRST..LAST with 1 <= FIRST <= LAST, or a list such as 12,192, up"
            f" to {MAX_RANKS:,} ranks, got {text!r}"
        )
    return counts


def _doubled(first: int, last: int) -> tuple[int, ...]:
    """Nothing where ``first`` cannot be doubled up to ``last``."""
    if not 1 <= first <= last:
        return ()
    return (*(first << k for k in range((last // first).bit_length()) if first << k < last), last)

"""From what was seen and measured to the plan of the next backward, alike on every rank.

A planner that needs no measurement plans once, from the graph. One that does begins with DDP's
caps, measures some steps, and plans again; ``"auto"`` then tries its best candidates on the job.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from itertools import chain
from math import nan
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gradsched.config import GradSchedConfig
from lightning_gradsched.core.bound import Bounds, bounds
from lightning_gradsched.core.candidates import (
    Candidate,
    candidates,
    candidates_with_norms,
    forward_candidates,
    lagged_candidates,
)
from lightning_gradsched.core.forward_overlap import lower_as_measured
from lightning_gradsched.core.plan import (
    GroupPlan,
    Planner,
    check_plan,
    ddp,
    fixed_size,
    planner_named,
)
from lightning_gradsched.core.profile import BackwardProfile, ParamProfile
from lightning_gradsched.core.report import TriedPlan
from lightning_gradsched.core.scatter import faster_with_norms, in_halves
from lightning_gradsched.core.schedule import (
    ReductionSchedule,
    lower,
    lower_into_forward,
    lower_with_lag,
)
from lightning_gradsched.core.simulate import simulate
from lightning_gradsched.core.timeline import Timeline
from lightning_gradsched.errors import PlanError
from lightning_gradsched.runtime import consensus
from lightning_gradsched.runtime.collectives import Collectives
from lightning_gradsched.runtime.compiled_split import CompiledSplit
from lightning_gradsched.runtime.norm_watch import norm_watch
from lightning_gradsched.runtime.profiler import StepProfiler, agree_on_profile
from lightning_gradsched.runtime.recorder import Clock
from lightning_gradsched.runtime.reduction import FLAT, Reduction
from lightning_gradsched.runtime.trial import PlanTrial

TRIED_PLANS = 4
# Into which compiled graphs are cut until a plan is settled; fine enough to choose groups from.
PIECES = 16


class Planning:
    """Holds the plan in force and everything it came from. Each method is collective."""

    def __init__(
        self, module: nn.Module, config: GradSchedConfig, collectives: Collectives, clock: Clock
    ) -> None:
        self._module = module
        self._sparse: Container[str] = ()
        self._config = config
        self._collectives = collectives
        self._clock = clock
        self._params: Mapping[str, Tensor] = {}
        self._order: Sequence[str] = ()  # of readiness, before it is measured
        self._trial: PlanTrial | None = None
        self._decided: GroupPlan | None = None  # by measurement, for the next backward
        self._restored: GroupPlan | None = None  # likewise, of a run before, without measurement
        self.plan: GroupPlan | None = None
        self.schedule: ReductionSchedule | None = None
        self.profiler: StepProfiler | None = None  # while steps are being measured
        self.profile: BackwardProfile | None = None
        self.tried: tuple[TriedPlan, ...] = ()
        self.split = CompiledSplit(self._groups_in)
        self.reduction = Reduction(
            module, config, collectives, measures=_measures(config, collectives.world_size)
        )
        self.network, self._cost = self.reduction.network, self.reduction.cost
        is_flat = self.reduction.name == FLAT
        self.norms = norm_watch(config, module, collectives, is_flat=is_flat)
        self._in_halves = bool(config.scatter_gradients)  # where that is faster

    def start(self, params: Mapping[str, Tensor], sparse: Container[str]) -> None:
        """Plan for these parameters; what was measured of fewer is forgotten.

        ``sparse``: names of those whose gradients are sparse.
        """
        self.close()
        self._params, self._sparse = dict(params), sparse
        self.profile, self._trial, self._decided, self.tried = None, None, None, ()
        self._restored = None
        if self._collectives.world_size > 1:
            self.split.attach(params)
        if self.network is not None:
            self.profiler = StepProfiler(self._module, params, self._clock)
        if self.norms is not None and not self._in_halves:
            self.norms.start()

    def close(self) -> None:
        """Take the profiler's hooks off the module."""
        if self.profiler is not None:
            self.profiler.detach()
            self.profiler = None

    def make(self, seen: Sequence[Sequence[str]]) -> tuple[GroupPlan, ReductionSchedule]:
        """The plan in force from now on.

        ``seen``: names in local ready order, in blocks of what comes at once.
        """
        if self.profile is not None and self._decided is not None:
            profile, plan = self.profile, self._decided
        elif self._restored is not None:
            plan, self._restored = self._restored, None
            profile = self._sizes(chain.from_iterable(plan.groups))
        else:
            met = [name for block in seen for name in self.split.in_order(block)]
            self._order = consensus.agree_order(self._collectives, list(self._params), met)
            profile = self._sizes(self._order)
            plan = self._unmeasured_planner()(profile, self._cost)
            if self._in_halves and self.network is None:
                plan = in_halves(plan, profile, self._collectives.world_size)
        check_plan(plan, profile)
        schedule = self._lowered(plan, profile)
        consensus.check_same_plan(self._collectives, plan, schedule)
        self.plan, self.schedule = plan, schedule
        self._cut_compiled(plan, seen)
        return self.plan, self.schedule

    def _sizes(self, order: Iterable[str]) -> BackwardProfile:
        """In this ready order; without times."""
        profiles = _param_profiles(self._params, self._sparse)
        return BackwardProfile(tuple(profiles[name] for name in order))

    def _cut_compiled(self, plan: GroupPlan, seen: Sequence[Sequence[str]]) -> None:
        """See [Note: compiled backwards]."""
        if self.profiler is not None:
            self.profiler.at_once = seen
        self.split.saw(seen, plan.groups)
        if self.is_settled:
            self.split.follow(plan.groups)

    def _groups_in(self, order: Sequence[str]) -> Sequence[Sequence[str]]:
        """The groups of these parameters, where no plan is settled by a guess. Local."""
        plan = self._decided or self._restored or self.plan
        if not self.is_settled:
            nbytes = sum(param.nbytes for param in self._params.values()) // PIECES
            plan = fixed_size(self._sizes(order), self._cost, nbytes=nbytes)
        elif plan is None:
            plan = self._unmeasured_planner()(self._sizes(order), self._cost)
        return plan.groups

    def _lowered(self, plan: GroupPlan, profile: BackwardProfile) -> ReductionSchedule:
        """Not into the forward while that is measured: it shall not wait."""
        if self._config.gradient_lag:
            return lower_with_lag(plan)
        if not self._config.overlap_forward or self.profiler is not None:
            return lower(plan)
        if self.network is None:  # a profile of a run before tells nothing without it
            return lower_into_forward(plan, profile)
        return lower_as_measured(plan, profile, self._cost)

    @property
    def bounds(self) -> Bounds | None:
        """The least that a step of what was measured can take; local, not collective.

        None for gradients of the step before: they are bounds of steps without staleness.
        """
        if self.profile is None or self._config.gradient_lag:
            return None
        return bounds(self.profile, self._cost)

    def state(self) -> dict[str, Any] | None:
        """The plan in force, for a later run; None while it is still being looked for."""
        is_watching = self.norms is not None and self.norms.is_on
        if self.plan is None or not self.is_settled or is_watching:
            return None
        profile = None if self.profile is None else self.profile.to_json()
        return {
            "settings": _deciding(self._config, self._collectives.world_size),
            "planner": self.plan.planner,
            "groups": [list(group) for group in self.plan.groups],
            "launches": list(self.plan.launches),
            "owners": [list(ranks) for ranks in self.plan.owners],
            "n_ranks": self.plan.n_ranks,
            "ends_with_backward": self.plan.ends_with_backward,
            "profile": profile,
        }

    def restore(self, state: Mapping[str, Any]) -> bool:
        """Go on with the plan of ``state``; False where it is of other parameters or settings."""
        params = _param_profiles(self._params, self._sparse)
        groups = tuple(map(tuple, state["groups"]))
        owners = tuple(map(tuple, state.get("owners", ())))
        launches = tuple(state.get("launches", ()))
        n_ranks, at_end = state.get("n_ranks", 1), state.get("ends_with_backward", False)
        plan = GroupPlan(state["planner"], groups, launches, owners, n_ranks, at_end)
        names = [name for group in plan.groups for name in group]
        same = state["settings"] == _deciding(self._config, self._collectives.world_size)
        may_scatter = self._config.scatter_gradients or self.norms is not None
        if not same or sorted(names) != sorted(params) or (any(owners) and not may_scatter):
            return False
        self.close()
        self._in_halves |= any(owners)
        if self.norms is not None:
            self.norms.stop()
        if state["profile"] is None:
            self._restored = plan
        else:
            self.profile, self._decided = BackwardProfile.from_json(state["profile"]), plan
        return True

    def predicted(self) -> Timeline | None:
        """What the cost model expects of the plan in force; local, not collective."""
        if self.plan is None or self.schedule is None or self.profile is None:
            return None
        return simulate(self.schedule, self.plan, self.profile, self._cost)

    @property
    def is_settled(self) -> bool:
        """Whether the plan in force, or the next one that is made, is to stay."""
        return self.profiler is None and self._trial is None

    @property
    def is_due_next(self) -> bool:
        """Whether ``step_ended`` may ask for a plan after the backward that runs. Local."""
        if self.norms is not None and self.norms.is_over_next:
            return True
        if self.profiler is not None:
            return self.profiler.is_done_next
        return self._trial is not None and self._trial.is_over_next

    def step_ended(self) -> bool:
        """Whether the next backward shall ask for another plan."""
        shall_halve = self._finds_norms()
        if self.profiler is not None:
            self.profiler.step_ended()
            if self.profiler.is_done:
                self._plan_from(self.profiler)
                return True
        elif self._trial is not None and self._trial.step_ended():
            self._go_on_with(self._trial)
            return True
        return shall_halve and self.network is None

    def _finds_norms(self) -> bool:
        """Whether it turns out here that groups may go in halves; see [Note: finding out]."""
        if self.norms is None or not self.norms.step_ended(self._params.values()):
            return False
        # Ranks need not ask alike.
        self._in_halves = self._collectives.max([int(self.norms.found)]) > [0]
        return self._in_halves

    def _plan_from(self, profiler: StepProfiler) -> None:
        params = self._sizes(self._params).params
        profile = agree_on_profile(self._collectives, profiler, params, self._order)
        self.close()
        decided = consensus.on_all_or_none(
            self._collectives,
            f"planner {self._config.planner_name!r}",
            lambda: self._decide(profile),
        )
        self.profile, self._decided = profile, decided[0].plan
        if self._config.planner == "auto":
            self._trial = PlanTrial(decided, self._clock)

    def _decide(self, profile: BackwardProfile) -> tuple[Candidate, ...]:
        """What to run next: the candidates of a trial, or the one plan that there is."""
        n_ranks = self._collectives.world_size
        if self._config.planner == "auto" and self._in_halves:
            return candidates_with_norms(profile, self._cost, n_ranks, most=TRIED_PLANS)
        if self._config.planner == "auto":
            return self._candidates()(profile, self._cost, most=TRIED_PLANS)
        plan = self._planner()(profile, self._cost)
        if not isinstance(plan, GroupPlan):
            raise PlanError(f"expected a planner to return a GroupPlan, got {plan!r}")
        check_plan(plan, profile)
        if self._in_halves:
            plan = faster_with_norms(plan, profile, self._cost, n_ranks)
        return (Candidate(plan, exposed_s=nan),)

    def _candidates(self) -> Callable[..., tuple[Candidate, ...]]:
        if self._config.gradient_lag:
            return lagged_candidates
        return forward_candidates if self._config.overlap_forward else candidates

    def _go_on_with(self, trial: PlanTrial) -> None:
        """Take the next candidate's turn, or the winner's for good."""
        if trial.is_done:
            self._decided, self.tried = trial.decide(self._collectives)
            self._trial = None
        else:
            self._decided = trial.current

    def _unmeasured_planner(self) -> Planner:
        return ddp if self._config.measures else self._planner()

    def _planner(self) -> Planner:
        planner = self._config.planner
        if isinstance(planner, str):
            return planner_named(planner, group_nbytes=self._config.group_nbytes)
        return planner


def _deciding(config: GradSchedConfig, world_size: int) -> str:
    """What a plan depends on besides the parameters, to be compared."""
    values = [config.planner_name, config.group_nbytes, config.reduce_dtype, world_size]
    if config.overlap_forward:
        values.append("overlap_forward")
    if config.scatter_gradients:
        values.append("scatter_gradients")
    if config.gradient_lag:
        values.append("gradient_lag")
    return ", ".join(map(str, values))


def _measures(config: GradSchedConfig, world_size: int) -> bool:
    """Whether plans come from measurements.

    What ``"auto"`` finds by the clock may differ from run to run, and with it, on three ranks or
    more, the last bits of a sum: not where deterministic algorithms are asked for.
    """
    if config.planner != "auto":
        return config.measures
    return world_size > 1 and not torch.are_deterministic_algorithms_enabled()


def _param_profiles(
    params: Mapping[str, Tensor], sparse: Container[str]
) -> dict[str, ParamProfile]:
    """By name. Devices are numbered as they are met, so that they are the same on every rank.

    What gets sparse gradients has a dtype of its own, so that no planner puts another with it.
    """
    devices: dict[torch.device, str] = {}
    profiles = {}
    for name, param in params.items():
        device = devices.setdefault(param.device, f"{param.device.type}:{len(devices)}")
        dtype = str(param.dtype).removeprefix("torch.")
        if name in sparse:
            dtype = f"sparse {dtype} of {name}"
        profiles[name] = ParamProfile(name, param.nbytes, dtype, device)
    return profiles

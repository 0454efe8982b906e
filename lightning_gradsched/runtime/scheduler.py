"""GradientScheduler: the engine's life cycle on one module, with or without Lightning."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.graph import Node

import lightning_gradsched
from lightning_gradsched.config import GradSchedConfig
from lightning_gradsched.core.plan import GroupPlan
from lightning_gradsched.core.profile import BackwardProfile, NetworkProfile
from lightning_gradsched.core.report import GroupInfo, OverlapReport, TriedPlan
from lightning_gradsched.core.schedule import ReductionSchedule
from lightning_gradsched.core.timeline import Timeline
from lightning_gradsched.errors import GradSchedError
from lightning_gradsched.runtime import consensus
from lightning_gradsched.runtime.collectives import Collectives
from lightning_gradsched.runtime.planning import Planning
from lightning_gradsched.runtime.recorder import Clock, CpuClock, CudaClock, StepRecords
from lightning_gradsched.runtime.reducer import Reducer


class GradientScheduler:
    """Averages a module's gradients over the ranks while backward computes them.

    Attaches hooks to ``module``, on its own device already, and never wraps it. All ranks must make
    it alike; rank 0's parameters and buffers are copied to the others. From then on
    ``loss.backward()`` leaves in ``.grad`` the mean over ranks, as DDP does.

    Args:
        module: the model; its trainable parameters are those that require gradients.
        config: how to group and record; the defaults where None.
        process_group: the ranks to average over, and the group that carries the reductions: nothing
            else may use it while a backward runs. Where None: all ranks, by a group of its own.

    Raises:
        ConsensusError: on every rank, if the ranks hold different models.
        GradSchedError: no process group, or a module without parameters.
    """

    def __init__(
        self,
        module: nn.Module,
        config: GradSchedConfig | None = None,
        *,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        if not dist.is_initialized():
            raise GradSchedError(
                "GradientScheduler needs a process group, got none: call"
                " torch.distributed.init_process_group() first"
            )
        self._module = module
        self._config = config or GradSchedConfig()
        device = next((p.device for p in module.parameters()), torch.device("cpu"))
        self._collectives = Collectives(process_group, device, self._config.stall_timeout_s)
        consensus.check_settings(
            self._collectives,
            {
                "lightning_gradsched": lightning_gradsched.__version__,
                "planner": self._config.planner_name,
                "group_nbytes": self._config.group_nbytes,
                "reduction": self._config.reduction,
                "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
            },
        )
        clock: Clock = CudaClock() if self._collectives.on_cuda else CpuClock()
        self._records = StepRecords(clock, self._config.record_every_n_steps)
        self._planning = Planning(module, self._config, self._collectives, clock)
        carrier = self._planning.reduction.carrier
        self._reducer = Reducer({}, carrier, self._make_plan, self._after_reduction)
        self._roots: list[Node] = []  # of the last forward, until a plan is made from them
        self._params: dict[str, Tensor] = {}
        self._take_trainable()
        self._broadcast_state()
        self._forward_handle = module.register_forward_hook(_ForwardHook(self))

    @property
    def plan(self) -> GroupPlan | None:
        """The groups that all ranks agreed on; None before the first backward."""
        return self._planning.plan

    @property
    def schedule(self) -> ReductionSchedule | None:
        """The order of launches and waits; None before the first backward."""
        return self._planning.schedule

    @property
    def profile(self) -> BackwardProfile | None:
        """What the plan was made from; None before it is measured, or where no planner asks."""
        return self._planning.profile

    @property
    def network(self) -> NetworkProfile | None:
        """What a planner that needs it has measured of the network."""
        return self._planning.network

    @property
    def reduction(self) -> str:
        """How gradients are summed: ``"flat"`` or ``"hierarchical"``."""
        return self._planning.reduction.name

    @property
    def predicted(self) -> Timeline | None:
        """The step that the cost model expects of the plan in force; None without a measurement."""
        return self._planning.predicted()

    @property
    def tried(self) -> tuple[TriedPlan, ...]:
        """The plans that ``planner="auto"`` has tried, with their step times; empty before."""
        return self._planning.tried

    def prepare(self, loss: Tensor) -> None:
        """Announce that ``loss`` (or a multiple of it) is about to be differentiated.

        Needed only where the module's own ``forward`` was not called: a module that was tells of
        its outputs by itself. Without either, gradients are right but none is sent before the end.
        """
        self._watch_root([loss], certain=True)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Within it, ``backward`` accumulates locally; the next one outside reduces the sum."""
        before = self._reducer.mute()
        try:
            yield
        finally:
            self._reducer.resume(before)

    def timelines(self) -> list[Timeline]:
        """The measured steps, oldest first; at most the last 16."""
        return self._records.timelines()

    def report(self, *, across_ranks: bool = False) -> OverlapReport:
        """What the recorded steps took and how much communication was hidden.

        Args:
            across_ranks: compare the transfers of all ranks, so that a straggler is told from a
                slow network, and by number. Then all ranks must call it alike, between two
                backwards and before ``detach``; each gets the report of its own steps.

        Raises:
            GradSchedError: no step has been recorded yet, or detached.
            ConsensusError: on every rank, if ``across_ranks`` and they have recorded unlike steps.
        """
        fastest = self._records.fastest(self._collectives) if across_ranks else None
        return self._records.report(
            fastest=fastest,
            predicted=self.predicted,
            cost=self._planning.reduction.cost if self.network is not None else None,
            tried=self.tried,
        )

    def detach(self) -> None:
        """Remove all hooks: the module is as it was before. Reports can still be asked for."""
        self._forward_handle.remove()
        self._planning.close()
        self._planning.reduction.close()
        # Before the reducer lets go of its works: see Bucket.work.
        self._collectives.close()
        self._reducer.detach()

    def _take_trainable(self) -> None:
        """Reduce, from now on, what requires gradients and is not reduced yet.

        Nothing is ever dropped: `toggle_optimizer` switches requires_grad off and on around a step.
        """
        named = dict(self._module.named_parameters())
        found = {n: p for n, p in named.items() if p.requires_grad and n not in self._params}
        consensus.check_parameters(self._collectives, found)
        if not named:
            raise GradSchedError(f"{type(self._module).__name__} has no parameters to train")
        self._params.update(found)
        self._frozen = [p for n, p in named.items() if n not in self._params]
        self._reducer.add(found)
        self._planning.start(self._params)
        self._reducer.profiler = self._planning.profiler

    def _broadcast_state(self) -> None:
        state = (*self._module.parameters(), *self._module.buffers())
        self._collectives.broadcast([tensor.detach() for tensor in state])

    def _make_plan(self, seen: Sequence[str]) -> tuple[GroupPlan, ReductionSchedule]:
        plan, schedule = self._planning.make(seen)
        self._records.start(_group_infos(plan, schedule, self._params))
        return plan, schedule

    def _watch_root(self, outputs: Sequence[Tensor], *, certain: bool) -> None:
        """Have the backward of ``outputs`` open a cycle as its first act."""
        if not self._reducer.buckets:
            # Kept here and not by the hook, which hangs on the graph: no cycle may hold a graph.
            self._roots = [t.grad_fn for t in outputs if t.grad_fn is not None]

        def on_root(_grad: Tensor) -> None:
            self._follow_unfrozen()
            self._reducer.begin(self._roots, certain=certain)
            self._roots = []

        for tensor in outputs:
            if tensor.grad_fn is not None:
                tensor.register_hook(on_root)

    def _follow_unfrozen(self) -> None:
        """Take in a parameter that was frozen and trains now (all ranks see the same)."""
        if any(p.requires_grad for p in self._frozen):
            self._take_trainable()

    def _after_reduction(self) -> None:
        self._reducer.recorder = self._records.turn(self._reducer.recorder)
        if self._planning.step_ended():
            self._reducer.forget_plan()
            self._reducer.recorder = None  # a step that makes a plan is like no other
        self._reducer.profiler = self._planning.profiler


def _group_infos(
    plan: GroupPlan, schedule: ReductionSchedule, params: Mapping[str, Tensor]
) -> list[GroupInfo]:
    return [
        GroupInfo(str(group), plan.groups[group], sum(params[n].nbytes for n in plan.groups[group]))
        for group in schedule.launches
    ]


class _ForwardHook:
    """Tells the scheduler of a module's outputs. A copied or pickled module's hook does nothing."""

    def __init__(self, scheduler: GradientScheduler | None) -> None:
        self._scheduler = weakref.ref(scheduler) if scheduler is not None else None

    def __call__(self, _module: nn.Module, _inputs: Any, output: Any) -> None:
        scheduler = self._scheduler() if self._scheduler is not None else None
        if scheduler is not None:
            roots = [tensor for tensor in _tensors(output) if tensor.grad_fn is not None]
            if roots:
                scheduler._watch_root(roots, certain=False)

    def __reduce__(self) -> tuple[type[_ForwardHook], tuple[None]]:
        return _ForwardHook, (None,)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif is_dataclass(value):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name))

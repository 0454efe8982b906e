"""GradientScheduler: the engine's life cycle on one module, with or without Lightning."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.graph import Node

from lightning_gradsched.config import GradSchedConfig
from lightning_gradsched.core.plan import GroupPlan, check_plan, planner_named
from lightning_gradsched.core.profile import BackwardProfile, ParamProfile
from lightning_gradsched.core.report import GroupInfo, OverlapReport
from lightning_gradsched.core.schedule import ReductionSchedule, lower
from lightning_gradsched.core.timeline import Timeline
from lightning_gradsched.errors import GradSchedError
from lightning_gradsched.runtime import consensus
from lightning_gradsched.runtime.collectives import Collectives
from lightning_gradsched.runtime.recorder import Clock, CpuClock, CudaClock, Recorder
from lightning_gradsched.runtime.reducer import Reducer

# Recorded steps that a report sums up.
REPORTED_STEPS = 16
# Late enough to be warm, early enough for short runs to have a report.
FIRST_RECORDED_STEP = 5


class GradientScheduler:
    """Averages a module's gradients over the ranks while backward computes them.

    Attaches hooks to ``module``, on its own device already, and never wraps it. All ranks must make
    it alike; rank 0's parameters and buffers are copied to the others. From then on
    ``loss.backward()`` leaves in ``.grad`` the mean over ranks, as DDP does.

    Args:
        module: the model; its trainable parameters are those that require gradients.
        config: how to group and record; the defaults where None.
        process_group: the ranks to average over; all of them where None.

    Raises:
        ConsensusError: on every rank, if the ranks hold different models.
        GradSchedError: no process group, or nothing to train.
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
        device = next((p.device for p in module.parameters()), None)
        if device is None:
            raise GradSchedError(f"{type(module).__name__} has no parameters: nothing to reduce")
        self._collectives = Collectives(process_group, device)
        on_nccl = dist.get_backend(process_group) == "nccl"
        self._clock: Clock = CudaClock() if on_nccl else CpuClock()
        self._recorders: deque[Recorder] = deque(maxlen=REPORTED_STEPS)
        self._step = 0
        self._roots: list[Node] = []  # of the last forward, until a plan is made from them
        self._plan: GroupPlan | None = None
        self._schedule: ReductionSchedule | None = None
        self._reducer = self._attach()
        self._broadcast_state()
        self._forward_handle = module.register_forward_hook(_ForwardHook(self))

    @property
    def plan(self) -> GroupPlan | None:
        """The groups that all ranks agreed on; None before the first backward."""
        return self._plan

    @property
    def schedule(self) -> ReductionSchedule | None:
        """The order of launches and waits; None before the first backward."""
        return self._schedule

    def prepare(self, loss: Tensor) -> None:
        """Announce that ``loss`` (or a multiple of it) is about to be differentiated.

        Needed only where the module's own ``forward`` was not called: a module that was tells of
        its outputs by itself. Without either, gradients are right but none is sent before the end.
        """
        self._watch_root([loss], certain=True)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Within it, ``backward`` accumulates locally; the next one outside reduces the sum."""
        self._reducer.mute()
        try:
            yield
        finally:
            self._reducer.unmute()

    def timelines(self) -> list[Timeline]:
        """The measured steps, oldest first; at most the last 16."""
        groups = [bucket.number for bucket in self._reducer.buckets]
        return [recorder.timeline(groups) for recorder in self._recorders]

    def report(self) -> OverlapReport:
        """What the recorded steps took and how much communication was hidden.

        Raises:
            GradSchedError: no step has been recorded yet.
        """
        if not self._recorders:
            raise GradSchedError(
                f"no step is recorded yet: {self._step} done, one in"
                f" {self._config.record_every_n_steps} is measured; set record_every_n_steps lower"
            )
        groups = [
            GroupInfo(str(bucket.number), tuple(s.name for s in bucket.slots), bucket.nbytes)
            for bucket in self._reducer.buckets
        ]
        return OverlapReport.of(self.timelines(), groups)

    def detach(self) -> None:
        """Remove all hooks: the module is as it was before."""
        self._forward_handle.remove()
        self._reducer.detach()

    def _attach(self) -> Reducer:
        named = dict(self._module.named_parameters())
        # As they are now: `toggle_optimizer` switches requires_grad off and on around a backward.
        self._params = {name: p for name, p in named.items() if p.requires_grad}
        self._frozen = [p for p in named.values() if not p.requires_grad]
        consensus.check_parameters(self._collectives, self._params)
        reducer = Reducer(self._params, self._collectives, self._make_plan)
        reducer.on_finish = self._after_step
        return reducer

    def _broadcast_state(self) -> None:
        state = (*self._module.parameters(), *self._module.buffers())
        self._collectives.broadcast([tensor.detach() for tensor in state])

    def _make_plan(self, seen: Sequence[str]) -> tuple[GroupPlan, ReductionSchedule]:
        order = consensus.agree_order(self._collectives, list(self._params), seen)
        profile = BackwardProfile(tuple(_profile(name, self._params[name]) for name in order))
        make = planner_named(self._config.planner, group_nbytes=self._config.group_nbytes)
        plan = make(profile)
        check_plan(plan, profile)
        consensus.check_plan(self._collectives, plan)
        self._plan, self._schedule = plan, lower(plan)
        return self._plan, self._schedule

    def _watch_root(self, outputs: Sequence[Tensor], *, certain: bool) -> None:
        """Have the backward of ``outputs`` open a cycle as its first act."""
        self._reducer.abandon_if_stale()
        if not self._reducer.buckets:
            # Kept here and not by the hook, which hangs on the graph: no cycle may hold a graph.
            self._roots = [t.grad_fn for t in outputs if t.grad_fn is not None]

        def on_root(_grad: Tensor) -> None:
            self._follow_unfrozen()
            self._reducer.begin(self._roots, certain=certain)
            self._roots = []

        for tensor in outputs:
            if tensor.requires_grad:
                tensor.register_hook(on_root)

    def _follow_unfrozen(self) -> None:
        """Start anew where a parameter that was frozen trains now (all ranks see the same)."""
        if any(p.requires_grad for p in self._frozen):
            self._reducer.detach()
            self._reducer = self._attach()

    def _after_step(self) -> None:
        """Keep this step's marks if there are any, and begin the next step's if it is its turn."""
        if self._reducer.recorder is not None:
            self._recorders.append(self._reducer.recorder)
        self._step += 1
        every = self._config.record_every_n_steps
        due = every > 0 and self._step % every == FIRST_RECORDED_STEP % every
        self._reducer.recorder = Recorder(self._clock) if due else None


def _profile(name: str, param: Tensor) -> ParamProfile:
    dtype = str(param.dtype).removeprefix("torch.")
    return ParamProfile(name, param.nbytes, dtype, str(param.device))


class _ForwardHook:
    """Tells the scheduler of a module's outputs. A copied or pickled module's hook does nothing."""

    def __init__(self, scheduler: GradientScheduler | None) -> None:
        self._scheduler = weakref.ref(scheduler) if scheduler is not None else None

    def __call__(self, _module: nn.Module, _inputs: Any, output: Any) -> None:
        scheduler = self._scheduler() if self._scheduler is not None else None
        if scheduler is not None:
            roots = [tensor for tensor in _tensors(output) if tensor.requires_grad]
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

"""Measures what planners plan from: the times of a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gradsched.core.profile import BackwardProfile, ParamProfile
from lightning_gradsched.runtime.collectives import Collectives
from lightning_gradsched.runtime.module_hook import WeakHook
from lightning_gradsched.runtime.recorder import Clock

# The first steps allocate and warm up; then so many are measured.
WARM_UP_STEPS = 2
MEASURED_STEPS = 5


@dataclass(slots=True)
class StepMarks:
    """The clock's marks of one step; first uses and gradients by parameter name."""

    needed: dict[str, Any] = field(default_factory=dict)
    ready: dict[str, Any] = field(default_factory=dict)
    forward_began: Any = None
    backward_began: Any = None
    backward_ended: Any = None


class StepProfiler:
    """Notes when forward first uses each parameter, and when its gradient is final in backward.

    Hangs on the module's forward hooks for a few steps; the reducer tells it of backward. Nothing
    waits for a device before ``times`` is asked. With gradient accumulation forward counts from the
    first micro-batch, so it holds the backwards of the micro-batches in between. Parameters inside
    a ``torch.compile``d region count as used when forward began.
    """

    def __init__(self, module: nn.Module, params: Mapping[str, Tensor], clock: Clock) -> None:
        self._module = module
        self._names = list(params)
        self._clock = clock
        # Names in blocks that a backward gives out at once: their hooks run one after the other.
        self.at_once: Sequence[Sequence[str]] = ()
        self._n_warm_up = WARM_UP_STEPS
        self._steps: list[StepMarks] = []
        self._now = StepMarks()
        name_of = {id(param): name for name, param in params.items()}
        self._handles = [
            child.register_forward_pre_hook(
                _FirstUse(self.first_use, [name_of[id(p)] for p in owned])
            )
            for child in module.modules()
            # The module itself in any case: its forward begins all others, and where parameters are
            # in a ParameterList, whose forward nobody calls, they count as used when it begins.
            if (owned := [p for p in child.parameters(recurse=False) if id(p) in name_of])
            or child is module
        ]

    @property
    def is_done(self) -> bool:
        return len(self._steps) == MEASURED_STEPS

    @property
    def is_done_next(self) -> bool:
        """Whether the next ``step_ended`` makes it done."""
        return self._n_warm_up == 0 and len(self._steps) + 1 == MEASURED_STEPS

    def detach(self) -> None:
        for handle in self._handles:
            handle.remove()

    def first_use(self, names: Sequence[str], *_hook_args: Any) -> None:
        """A module that owns these parameters is about to run; a forward for validation is none."""
        if self._module.training:
            mark = self._clock.mark()
            if self._now.forward_began is None:
                self._now.forward_began = mark
            for name in names:
                self._now.needed.setdefault(name, mark)

    def backward_began(self) -> None:
        self._now.backward_began = self._clock.mark()

    def gradient(self, name: str) -> None:
        self._now.ready[name] = self._clock.mark()

    def backward_ended(self) -> None:
        self._now.backward_ended = self._clock.mark()

    def step_ended(self) -> None:
        if self._n_warm_up > 0:
            self._n_warm_up -= 1
        else:
            self._steps.append(self._now)
        self._now = StepMarks()

    def times(self) -> list[float]:
        """Medians over the steps: forward, backward, then ready and first use of each parameter."""
        rows = zip(*map(self._times_of, self._steps), strict=True)
        return [median(values) for values in rows]

    def _times_of(self, step: StepMarks) -> list[float]:
        seconds = self._clock.seconds
        forward_began = step.forward_began or step.backward_began
        ended = step.backward_ended
        ready_s = {n: seconds(step.backward_began, step.ready.get(n, ended)) for n in self._names}
        for block in self.at_once:
            ready_s.update(dict.fromkeys(block, max(ready_s[name] for name in block)))
        needed = [step.needed.get(name, forward_began) for name in self._names]
        return [
            seconds(forward_began, step.backward_began),
            seconds(step.backward_began, ended),
            *ready_s.values(),
            *(seconds(forward_began, mark) for mark in needed),
        ]


class _FirstUse(WeakHook):
    """Tells the profiler that a module is about to run."""

    def __call__(self, *args: Any) -> None:
        # A clock in a compiled graph would break it in two.
        if not torch.compiler.is_compiling():
            super().__call__(*args)


def agree_on_profile(
    collectives: Collectives,
    profiler: StepProfiler,
    params: Sequence[ParamProfile],
    order: Sequence[str],
) -> BackwardProfile:
    """The median over ranks of what each has measured; the same on all. Collective.

    ``order``: names, by which to order what is ready at the same moment.
    """
    forward_s, backward_s, *rest = collectives.median(profiler.times())
    ready, needed = rest[: len(params)], rest[len(params) :]
    timed = [
        param._replace(ready_s=ready_s, needed_s=needed_s)
        for param, ready_s, needed_s in zip(params, ready, needed, strict=True)
    ]
    place = {name: i for i, name in enumerate(order)}
    timed.sort(key=lambda param: (param.ready_s, place[param.name]))
    return BackwardProfile(tuple(timed), forward_s, backward_s)

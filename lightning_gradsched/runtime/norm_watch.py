"""Whether steps ask something of all gradients at once, where nobody has said so.

[Note: finding out] Clipping by norm and GradScaler ask of most gradients what groups in halves
would answer (see [Note: foresight]) before anybody has looked at them otherwise, and before the
optimizer's step. So in the first steps the gradients that are given out note what they are asked
first; whether they have come or are open, they are read as ever. Then the ranks agree. Planners
that measure do so after the steps that are watched, and then try what the answer allows; the others
plan again where it is yes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_gradsched.config import GradSchedConfig
from lightning_gradsched.runtime.collectives import Collectives
from lightning_gradsched.runtime.compiler_watch import has_compiled
from lightning_gradsched.runtime.lazy import (
    OpenGradient,
    completion_of,
    looks_of_a_tensor,
    make_lazy,
    settle,
)
from lightning_gradsched.runtime.scattered_gradient import QUESTIONS

# Of two optimizers in turn each has a step of its own.
WATCHED_STEPS = 2


class NormWatch:
    """Of one engine. ``found``: whether a step has asked such a thing, on this rank."""

    def __init__(self) -> None:
        self.found = False
        self.is_of_use = False  # once there is an optimizer that leaves updates to the forward
        self._n_left = 0  # of the steps to watch, and the one after which all is known
        self._numel: dict[int, int] = {}  # of the gradients that are watched, by id
        self._asked: set[int] = set()
        self._came: list[Tensor] = []  # those of them that were not open

    def start(self) -> None:
        """Watch the next steps."""
        self._n_left = WATCHED_STEPS + 1

    def stop(self) -> None:
        self._n_left = 0

    @property
    def is_on(self) -> bool:
        return self._n_left > 0

    @property
    def is_over_next(self) -> bool:
        """Whether the next ``step_ended`` will be true."""
        return self._n_left == 1

    def step_ended(self, params: Iterable[Tensor]) -> bool:
        """Watch the gradients of ``params``, just given out; once, the watch is over instead."""
        if not self.is_on:
            return False
        self._n_left -= 1
        # Compiled graphs do not ask: see [Note: looking].
        if self.is_on and self.is_of_use and not has_compiled():
            for param in params:
                self._watch(param.numel(), param.grad)
        return not self.is_on

    def _watch(self, numel: int, grad: Tensor | None) -> None:
        completes: Callable[[], None]
        if type(grad) is OpenGradient:
            completes = completion_of(grad)
        elif type(grad) is Tensor and grad.layout is torch.strided:
            completes = partial(settle, [grad])
            self._came.append(grad)
        else:
            return
        self._numel[id(grad)] = numel
        make_lazy([grad], WatchedGradient, _Mark(completes, self._asked, id(grad)))

    def step_begins(self, optimizer: Optimizer) -> None:
        """What it asks of the gradients itself does not count."""
        if self._numel:
            params = (param for group in optimizer.param_groups for param in group["params"])
            numel = self._no_longer(id(param.grad) for param in params)
            # Under GradScaler a fused optimizer waits for all in any case.
            if getattr(optimizer, "found_inf", None) is None:
                self._judge(numel)

    def settle(self) -> None:
        """The step is over, whether an optimizer has made it or GradScaler has skipped it."""
        if self._numel:
            self._judge(self._no_longer(list(self._numel)))
        settle(self._came)
        self._came.clear()
        self._asked.clear()

    def _no_longer(self, keys: Iterable[int]) -> dict[int, int]:
        return {key: self._numel.pop(key) for key in keys if key in self._numel}

    def _judge(self, numel: dict[int, int]) -> None:
        n_asked = sum(numel[key] for key in numel.keys() & self._asked)
        self.found |= 2 * n_asked > sum(numel.values())


@dataclass(frozen=True, slots=True)
class _Mark:
    """Completes a gradient; ``key`` is added to ``asked`` where it is asked before that."""

    completes: Callable[[], None]
    asked: set[int]
    key: int

    def __call__(self) -> None:
        self.completes()


class WatchedGradient(OpenGradient):
    """Open or not, it notes what halves would answer."""

    PASSES = frozenset(looks_of_a_tensor())

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func in QUESTIONS and args:
            first = args[0]
            for tensor in first if isinstance(first, (list, tuple)) else (first,):
                if isinstance(tensor, WatchedGradient):
                    mark: _Mark = completion_of(tensor)
                    mark.asked.add(mark.key)
        return super().__torch_function__(func, types, args, kwargs)


def norm_watch(
    config: GradSchedConfig, module: nn.Module, collectives: Collectives, *, is_flat: bool
) -> NormWatch | None:
    """One where nobody has decided and groups could travel in halves; collective, alike on all.

    ``is_flat``: whether gradients are summed over all ranks at once.
    """
    may_find = (
        config.overlap_forward
        and config.scatter_gradients is None
        and config.reduce_dtype is None
        and is_flat
        and collectives.world_size > 1
        and collectives.backend == "gloo"
    )
    if not may_find:
        return None
    on_cpu = all(param.device.type == "cpu" for param in module.parameters())
    return NormWatch() if collectives.max([int(not on_cpu)]) == [0] else None

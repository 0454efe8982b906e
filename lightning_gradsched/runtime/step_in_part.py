"""Optimizers whose step updates some of their parameters: those that are per parameter."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_gradsched.errors import GradSchedError

# A step updates each parameter from its own gradient, state and hyperparameters, and runs its
# closure before all else: so the parameters may be updated in several parts. tests/parity/
# test_overlap_forward.py holds each of them to it.
PER_PARAMETER = (
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "ASGD",
    "NAdam",
    "RAdam",
    "RMSprop",
    "Rprop",
    "SGD",
)
# Parameter groups that lack some parameters now, and their former ``params``.
Passed = list[tuple[dict[str, Any], list[Tensor]]]


class StepInPart:
    """Has ``optimizer.step()`` pass over what ``pass_over`` takes out of its parameter groups.

    ``mode``: the setting that asks for it, for errors.

    Raises:
        GradSchedError: ``optimizer`` is not known to update each parameter by itself.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        pass_over: Callable[[Optimizer], Passed],
        trusted: Collection[str],
        mode: str,
    ) -> None:
        check_per_parameter(optimizer, trusted, mode)
        self._optimizer = weakref.ref(optimizer)
        self._pass_over = pass_over
        self._passed: Passed = []
        self._handles: list[RemovableHandle] = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]
        # Other hooks after a step shall find all parameters in their groups.
        hooks: Any = optimizer._optimizer_step_post_hooks
        hooks.move_to_end(self._handles[1].id, last=False)

    def detach(self) -> None:
        self._restore()
        for handle in self._handles:
            handle.remove()

    def _before_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Pass over them once the closure has run, which may hold the backward.

        ``args`` begin with the optimizer itself.
        """
        self._restore()
        closure: Callable[[], Any] | None = args[1] if args[1:] else kwargs.get("closure")

        def closure_then_pass() -> Any:
            result = closure() if closure is not None else None
            self._passed = self._pass_over(optimizer)
            return result

        rest = {name: value for name, value in kwargs.items() if name != "closure"}
        return (optimizer, closure_then_pass, *args[2:]), rest

    def _after_step(self, *_: Any) -> None:
        self._restore()

    def _restore(self) -> None:
        """Every parameter in its group again; also after a step that raised."""
        for group, params in self._passed:
            group["params"] = params
        self._passed = []


def check_per_parameter(optimizer: Optimizer, trusted: Collection[str], mode: str) -> None:
    """Raise ``GradSchedError`` unless ``optimizer`` is known to update each parameter by itself."""
    kind = type(optimizer)
    known = kind.__name__ in PER_PARAMETER and kind is getattr(torch.optim, kind.__name__, None)
    if known and optimizer.defaults.get("differentiable"):
        raise GradSchedError(f"{mode}: expected differentiable=False of {kind.__name__}")
    if not known and kind.__name__ not in trusted:
        raise GradSchedError(
            f"{mode}: {kind.__name__} is not known to update each parameter from its own"
            f" gradient alone, as {', '.join(PER_PARAMETER)} do. If it does, and calls its closure"
            f" before all else, say so by per_parameter_optimizers=({kind.__name__!r},); if not,"
            f" set {mode}=False."
        )

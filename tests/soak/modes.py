"""What a mode of the engine changes in an episode, and the slow references of it.

[Note: looking in between] With ``overlap_forward`` whoever compares gradients ends the wait for
them. So in every second step nobody does: the weights are compared instead, after a forward that
has used them all.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tests.soak import faults
from tests.soak.nets import N_ROWS, WIDTH
from tests.soak.reference import average, check_equal, check_same_bits, tolerance_of

MODES = ("overlap_forward", "gradient_lag", "shard_optimizer")
# A NaN shows a step later, and who caught an exception alone has another step's gradients then.
NOT_WITH_LAG = {*faults.NOT_FINITE, *faults.N_REDUCTIONS, "raises_on_one_rank"}


def with_mode(episode: Any, mode: str) -> Any:
    """``episode`` with ``mode`` on, without what does not go with it."""
    settings = {
        **episode.settings,
        "schedule": "static",
        mode: 1 if mode == "gradient_lag" else True,
    }
    if mode != "gradient_lag":
        return replace(episode, settings=settings)
    blocks = tuple("plain" if name == "embedded" else name for name in episode.blocks)
    hides = any("reentrant" in name for name in blocks)
    return replace(
        episode,
        settings=settings,
        blocks=blocks,
        steps=tuple(_with_lag(step, hides=hides) for step in episode.steps),
    )


def _with_lag(step: Any, *, hides: bool) -> Any:
    """A backward that was not announced may not meet gradients that were not set to None."""
    if step.fault in NOT_WITH_LAG:
        step = replace(step, fault="")
    return replace(step, zero_grad="to_none") if hides or step.fault == "root_not_seen" else step


def drawn(seed: int) -> str:
    return random.Random(f"mode {seed}").choice(MODES)


class HeldBack:
    """With ``gradient_lag``: what the twin's gradients are, given what they would be without."""

    def __init__(self) -> None:
        self.kept: dict[str, Tensor] = {}
        self.before: dict[str, Tensor] = {}
        self.norms: dict[str, float] = {}

    def begin(self, twin: nn.Module) -> None:
        """Before a step's backwards: what is kept of the step before is not sent again."""
        self.kept = {n: p.grad for n, p in twin.named_parameters() if p.grad is not None}
        for param in twin.parameters():
            param.grad = None

    def hold(self, twin: nn.Module, norms: dict[str, float]) -> dict[str, float]:
        """After the average; the norms that tolerances are taken of."""
        for name, param in twin.named_parameters():
            if param.grad is not None:
                mean, param.grad = param.grad, self.before.get(name, torch.zeros_like(param))
                self.before[name] = mean
            if name in self.kept:
                kept = self.kept[name]
                param.grad = kept if param.grad is None else param.grad + kept
            self.norms[name] = max(norms[name], self.norms.get(name, 0.0))
        return self.norms


def check_weights(
    net: nn.Module,
    twin: nn.Module,
    before: dict[str, Tensor],
    lr: float,
    *,
    is_averaged: bool,
    reduce_dtype: torch.dtype | None,
    n_reductions: int,
) -> None:
    """After the step of ``net``: its next forward uses what plain SGD makes of ``before``."""
    norms = {
        n: 0.0 if p.grad is None else float(p.grad.abs().double().norm())
        for n, p in twin.named_parameters()
    }
    if not is_averaged:
        norms = average(twin, as_reals=reduce_dtype is not None)
    with torch.no_grad():
        net.eval()(torch.ones(N_ROWS, WIDTH))
    net.train()
    theirs = dict(twin.named_parameters())
    for name, param in net.named_parameters():
        grad = theirs[name].grad
        expected = before[name] if grad is None else before[name] - lr * grad
        rounding = 8 * torch.finfo(param.dtype).eps * float(expected.abs().double().norm())
        tolerance = lr * n_reductions * tolerance_of(param, reduce_dtype, norms[name]) + rounding
        check_equal(name, param.detach(), expected, tolerance)
    check_same_bits({name: param.detach() for name, param in net.named_parameters()})


def is_looked_at(settings: dict[str, Any], number: int) -> bool:
    """See [Note: looking in between]."""
    return not settings.get("overlap_forward") or number % 2 == 0


def checks_weights(settings: dict[str, Any]) -> bool:
    return bool(settings.get("overlap_forward") or settings.get("shard_optimizer"))

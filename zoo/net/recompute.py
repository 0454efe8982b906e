"""Activation checkpointing: keep a part's inputs, compute the rest again in backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

Result = TypeVar("Result")


def recomputed(
    module: nn.Module, function: Callable[..., Result], *inputs: Tensor, enabled: bool = True
) -> Result:
    """`function(*inputs)`, whose activations backward computes again; the same gradients.

    Args:
        module: holds the parameters that `function` uses. Its batch normalizations count the
            samples once, not once more in backward (compiled they still count twice).
        enabled: False keeps the activations.
    """
    if not enabled or not torch.is_grad_enabled():
        return function(*inputs)
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    if not norms or torch.compiler.is_compiling():
        return checkpoint(function, *inputs, use_reentrant=False)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _running_statistics_kept(norms)

    return checkpoint(function, *inputs, use_reentrant=False, context_fn=contexts)


@contextmanager
def _running_statistics_kept(norms: list[_BatchNorm]) -> Iterator[None]:
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum

"""Updates as in ``optimizer.step()``, whoever it is that waits for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """As in ``optimizer.step()``, whatever the forward or evaluation in which somebody looks."""
    with (
        _not_compiling(),
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast(device.type, enabled=False),
        _disable_current_modes(),
    ):
        yield


@contextmanager
def _not_compiling() -> Iterator[None]:
    """Optimizers compute in other ways in a graph, which is not what is made when a graph is."""
    compiler: Any = torch.compiler
    before = getattr(compiler, "_is_compiling_flag", False)
    compiler._is_compiling_flag = False
    try:
        yield
    finally:
        compiler._is_compiling_flag = before

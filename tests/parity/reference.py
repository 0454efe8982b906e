"""The slow, obvious reducer: after backward, one blocking all-reduce a parameter."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn


def average_gradients(module: nn.Module, *, as_reals: bool = False) -> None:
    """Make every ``.grad`` the mean over ranks; None where it is None on all ranks.

    ``as_reals``: divide complex ones as pairs of reals: an infinite one keeps its zero part.
    """
    for param in module.parameters():
        used = torch.tensor(int(param.grad is not None))
        dist.all_reduce(used)
        if used == 0:
            continue
        if param.grad is None:
            param.grad = torch.zeros_like(param)
        by_pairs = as_reals and param.grad.is_complex()
        grad = torch.view_as_real(param.grad) if by_pairs else param.grad
        grad.mul_(1 / dist.get_world_size())
        dist.all_reduce(param.grad)

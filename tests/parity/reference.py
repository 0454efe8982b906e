"""The slow, obvious reducer: after backward, one blocking all-reduce a parameter."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn


def average_gradients(module: nn.Module) -> None:
    """Make every ``.grad`` the mean over ranks; None where it is None on all ranks."""
    for param in module.parameters():
        used = torch.tensor(int(param.grad is not None))
        dist.all_reduce(used)
        if used == 0:
            continue
        if param.grad is None:
            param.grad = torch.zeros_like(param)
        param.grad.mul_(1 / dist.get_world_size())
        dist.all_reduce(param.grad)

"""A few steps of Fabric with a mode on, beside the same ones with ``ddp``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor

from lightning_gradsched.fabric import GradSchedFabricStrategy

N_STEPS = 6


def steps_as_with_ddp(
    rank: int, settings: dict[str, Any], max_norm: float | None = None, folder: str | None = None
) -> tuple[bool, int]:
    """Whether weights are alike, and groups or messages that the last step has left open.

    ``max_norm``: clip to it; ``folder``: save the optimizer there, and compare what is loaded.
    """
    ours, n_open = _train(rank, GradSchedFabricStrategy(**settings), max_norm, folder)
    theirs, _ = _train(rank, "ddp", max_norm, folder)
    return alike(ours, theirs), n_open


def _train(rank: int, strategy: Any, max_norm: float | None, folder: str | None) -> tuple[Any, int]:
    fabric = Fabric(accelerator="cpu", devices=2, strategy=strategy)
    fabric.launch()
    torch.manual_seed(0)
    bare = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    net, optimizer = fabric.setup(bare, torch.optim.Adam(bare.parameters(), lr=0.1))
    for step in range(N_STEPS):
        optimizer.zero_grad()
        fabric.backward(net(torch.full((2, 4), 1.0 + rank + step)).square().mean())
        if max_norm is not None:
            fabric.clip_gradients(net, optimizer, max_norm=max_norm)
        optimizer.step()
    n_open = 0 if strategy == "ddp" else fabric.strategy.scheduler(net).n_open
    saved = None
    if folder is not None:
        path = Path(folder, f"{strategy == 'ddp'}.ckpt")
        fabric.save(path, {"optimizer": optimizer})
        saved = fabric.load(path)["optimizer"]
    return ([param.detach().clone() for param in bare.parameters()], saved), n_open


def alike(a: Any, b: Any) -> bool:
    """To the last bit, whatever holds the tensors."""
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(alike(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(alike, a, b))
    return bool(a == b)

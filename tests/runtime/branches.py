"""A net whose forwards may take any of its layers, and what its gradients came to."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.parity.nets import WIDTH

Grads = dict[str, Tensor | None]


class Branches(nn.Module):
    """Which of its layers a forward uses is an argument."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor, used: str) -> Tensor:
        for name in used:
            x = torch.tanh(getattr(self, name)(x))
        return x


def grads_of(net: nn.Module) -> Grads:
    return {n: None if p.grad is None else p.grad.clone() for n, p in net.named_parameters()}


def equal(ours: Grads, theirs: Grads) -> bool:
    return ours.keys() == theirs.keys() and all(
        theirs[name] is None if grad is None else torch.equal(grad, theirs[name])
        for name, grad in ours.items()
    )

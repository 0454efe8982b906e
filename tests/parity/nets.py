"""Small nets, one for each way in which a backward graph can be awkward."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

WIDTH = 12


class Residual(nn.Module):
    """Skips and a side branch: gradients become ready out of registration order."""

    def __init__(self) -> None:
        super().__init__()
        self.side = nn.Linear(WIDTH, 1)
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        aux = self.side(x)
        for block in self.blocks:
            x = x + F.gelu(block(x))
        return self.norm(x) + aux


class Dense(nn.Module):
    """Each layer reads all before it, in convolutions with channels-last strides."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(1 + 2 * i, 2, 3, padding=1) for i in range(4))
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        features = x.view(-1, 1, 3, WIDTH // 3)
        for layer in self.layers:
            features = torch.cat([features, torch.tanh(layer(features))], 1)
        return features.mean(dim=(2, 3))


class Tied(nn.Module):
    """Encoder and decoder share one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(WIDTH, WIDTH, bias=False)
        self.middle = nn.Linear(WIDTH, WIDTH)
        self.decode = nn.Linear(WIDTH, WIDTH)
        self.decode.weight = self.encode.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(torch.tanh(self.middle(torch.tanh(self.encode(x)))))


class Checkpointed(nn.Module):
    """Blocks recomputed in backward; re-entrant ones hide their parameters from the graph."""

    def __init__(self, use_reentrant: bool) -> None:
        super().__init__()
        self.use_reentrant = use_reentrant
        self.head = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU()) for _ in range(3)
        )
        self.tail = nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=self.use_reentrant)
        return self.tail(x)


class SharedReentrant(nn.Module):
    """One block in two re-entrant segments: its gradients come twice in one backward."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(WIDTH, WIDTH)
        self.block = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        for _ in range(2):
            x = checkpoint(self.block, x, use_reentrant=True)
        return x


class DirectAndReentrant(nn.Module):
    """One layer used in a re-entrant checkpoint (if ``use_checkpoint``) and again outside of it."""

    def __init__(self) -> None:
        super().__init__()
        self.use_checkpoint = True
        self.first, self.shared, self.middle = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        if self.use_checkpoint:
            x = checkpoint(self.shared, x, use_reentrant=True)
        return self.shared(torch.tanh(self.middle(x)))


NETS = {
    "residual": Residual,
    "dense": Dense,
    "tied": Tied,
    "checkpointed": partial(Checkpointed, use_reentrant=False),
    "checkpointed_reentrant": partial(Checkpointed, use_reentrant=True),
}

"""Nets out of random blocks, one kind for each way in which a backward graph can be awkward."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

WIDTH = 8
N_ROWS = 4

Route = Sequence[int]  # a random number a block, of which it makes its choices


class Plain(nn.Module):
    """A linear layer, in any dtype."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH, dtype=dtype)

    def forward(self, x: Tensor, choice: int) -> Tensor:
        y = self.layer(x.to(self.layer.weight.dtype))
        return torch.tanh((y.real if y.is_complex() else y).to(x.dtype))


class Branch(nn.Module):
    """One of two layers; the other is unused."""

    def __init__(self) -> None:
        super().__init__()
        self.ways = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))

    def forward(self, x: Tensor, choice: int) -> Tensor:
        return x + torch.tanh(self.ways[choice % 2](x))


class StochasticDepth(nn.Module):
    """A residual branch that is left out now and then, with or without a checkpoint inside."""

    def __init__(self, use_reentrant: bool | None = None) -> None:
        super().__init__()
        self.use_reentrant = use_reentrant
        self.branch = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU())

    def forward(self, x: Tensor, choice: int) -> Tensor:
        if choice % 3 == 0:
            return x
        if self.use_reentrant is None:
            return x + self.branch(x)
        return x + checkpoint(self.branch, x, use_reentrant=self.use_reentrant)


class Tied(nn.Module):
    """Two layers of one weight, in either order."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.decode.weight = self.encode.weight

    def forward(self, x: Tensor, choice: int) -> Tensor:
        first, second = (self.encode, self.decode)[:: 1 if choice % 2 else -1]
        return second(torch.tanh(first(x)))


class Repeated(nn.Module):
    """One layer used one to three times."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, choice: int) -> Tensor:
        for _ in range(1 + choice % 3):
            x = torch.tanh(self.layer(x))
        return x


class Checkpointed(nn.Module):
    """Two layers recomputed in backward; re-entrant ones are hidden from the graph."""

    def __init__(self, use_reentrant: bool, times: int = 1) -> None:
        super().__init__()
        self.use_reentrant, self.times = use_reentrant, times
        self.block = nn.Sequential(
            nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH), nn.Tanh()
        )

    def forward(self, x: Tensor, choice: int) -> Tensor:
        for _ in range(self.times):
            x = checkpoint(self.block, x, use_reentrant=self.use_reentrant)
        return x


class Experts(nn.Module):
    """A mixture: each row goes to one of four experts, some of which get none."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor, choice: int) -> Tensor:
        out = x.clone()
        for row in range(x.size(0)):
            expert = self.experts[(choice >> 2 * row) % 4]
            out[row] = x[row] + torch.tanh(expert(x[row]))
        return out


class Unused(nn.Module):
    """One layer that nothing uses beside one that is used."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, choice: int) -> Tensor:
        return self.used(x)


class Embedded(nn.Module):
    """Adds rows of an embedding with sparse gradients; now and then none."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, WIDTH, sparse=True)

    def forward(self, x: Tensor, choice: int) -> Tensor:
        if choice % 4 == 0:
            return x
        return x + self.table(torch.arange(choice, choice + x.size(0)) % 10)


class Normed(nn.Module):
    """Batch norm: buffers that change with every forward in training."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(WIDTH)

    def forward(self, x: Tensor, choice: int) -> Tensor:
        return self.norm(x)


class Convolved(nn.Module):
    """A convolution with channels-last strides, and a parameter of a single number."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(2, 2, 3, padding=1).to(memory_format=torch.channels_last)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, choice: int) -> Tensor:
        y: Tensor = self.layer(x.view(-1, 2, 2, WIDTH // 4))
        return self.scale * F.gelu(y).reshape(x.shape)


MAKERS: dict[str, Callable[[], nn.Module]] = {
    "plain": Plain,
    "double": lambda: Plain(torch.float64),
    "bfloat16": lambda: Plain(torch.bfloat16),
    "complex": lambda: Plain(torch.complex64),
    "branch": Branch,
    "stochastic_depth": StochasticDepth,
    "stochastic_checkpoint": lambda: StochasticDepth(use_reentrant=False),
    "stochastic_reentrant": lambda: StochasticDepth(use_reentrant=True),
    "tied": Tied,
    "repeated": Repeated,
    "checkpoint": lambda: Checkpointed(use_reentrant=False),
    "shared_checkpoint": lambda: Checkpointed(use_reentrant=False, times=2),
    "reentrant": lambda: Checkpointed(use_reentrant=True),
    "shared_reentrant": lambda: Checkpointed(use_reentrant=True, times=2),
    "experts": Experts,
    "unused": Unused,
    "embedded": Embedded,
    "normed": Normed,
    "convolved": Convolved,
}
BLOCKS = tuple(MAKERS)


class RandomNet(nn.Module):
    """The blocks in a row between two layers. ``trouble`` is (where, after which block) or None."""

    def __init__(self, blocks: Sequence[str]) -> None:
        super().__init__()
        self.stem = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(MAKERS[name]() for name in blocks)
        self.head = nn.Linear(WIDTH, 2)
        self.route: Route = ()
        self.trouble: tuple[str, int, Callable[[], None]] | None = None

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for i, (block, choice) in enumerate(zip(self.blocks, self.route, strict=True)):
            x = block(x, choice)
            if self.trouble is not None and self.trouble[1] == i:
                self._run_into(x, *self.trouble)
        return self.head(x)

    @staticmethod
    def _run_into(x: Tensor, where: str, _: int, happens: Callable[[], None]) -> None:
        if where == "forward":
            happens()
        else:
            x.register_hook(lambda _grad: happens())

"""A chain of layers whose groups are left to the next forward, its steps, and who may look."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lightning_gradsched import GradientScheduler, GradSchedConfig

WIDTH = 6


class Chain(nn.Module):
    """Three layers; the head's group is launched first, so that it is never left open."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.middle, self.head = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.middle(torch.tanh(self.stem(x)))))


def engine(net: nn.Module, **config: Any) -> GradientScheduler:
    return GradientScheduler(
        net, GradSchedConfig(planner="per_tensor", overlap_forward=True, **config)
    )


def nets(make: Callable[[], nn.Module] = Chain) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    net = make()
    return net, copy.deepcopy(net)


def one_step(net: nn.Module, optimizer: torch.optim.Optimizer, rank: int, step: int = 0) -> None:
    generator = torch.Generator().manual_seed(10 * step + rank)
    optimizer.zero_grad()
    net(torch.randn(3, WIDTH, generator=generator)).square().mean().backward()
    optimizer.step()


def adam(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(net.parameters(), lr=0.1)


def overlapped(rank: int, **config: Any) -> tuple[Chain, Any, GradientScheduler, Chain]:
    """A net with groups left open, its optimizer and engine, and the net as it must be."""
    net, plain = nets()
    scheduler = engine(net, **config)
    optimizer = adam(net)
    scheduler.overlap(optimizer)
    one_step(net, optimizer, rank)
    assert scheduler.n_open == 2
    reference = GradientScheduler(plain, GradSchedConfig(planner="single"))
    one_step(plain, adam(plain), rank)
    reference.detach()
    return net, optimizer, scheduler, plain


# How someone may look at the stem's weight, which is due: what it must find is the plain net's.
LOOKS: dict[str, Callable[[Chain], Tensor]] = {
    "detach": lambda net: net.stem.weight.detach(),
    "data": lambda net: net.stem.weight.data,
    "state_dict": lambda net: net.state_dict()["stem.weight"],
    "state_dict of variables": lambda net: net.state_dict(keep_vars=True)["stem.weight"] * 1,
    "clone": lambda net: net.stem.weight.clone(),
    "deepcopy": lambda net: copy.deepcopy(net).stem.weight,
    "save": lambda net: saved(net),
    "numpy": lambda net: torch.from_numpy(net.stem.weight.detach().numpy()),
    "a list": lambda net: torch._foreach_mul([net.stem.weight, net.head.weight], 1.0)[0],
    "in a dict": lambda net: torch.func.functional_call(
        net, {"stem.weight": net.stem.weight}, torch.eye(WIDTH)
    ),
    "the module": lambda net: net.stem(torch.eye(WIDTH)),
    "its function": lambda net: F.linear(torch.eye(WIDTH), net.stem.weight),
    "a view": lambda net: net.stem.weight[0],
    "to another dtype": lambda net: copy.copy(net).to(torch.float64).stem.weight,
    "an average": lambda net: averaged(net),
    "its gradient": lambda net: net.stem.weight.grad.clone(),
    "the norm of gradients": lambda net: nn.utils.get_total_norm(
        [p.grad for p in net.parameters()]
    ),
    "text": lambda net: torch.tensor([float(len(repr(net.stem.weight)))]),
}


def saved(net: Chain) -> Tensor:
    file = io.BytesIO()
    torch.save(net.stem.weight, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def averaged(net: Chain) -> Tensor:
    average = AveragedModel(Chain(), multi_avg_fn=get_ema_multi_avg_fn(0.9))
    average.update_parameters(net)
    return average.module.stem.weight

"""``torch.compile``d modules: gradients and buffers as DDP has them, in whichever order made."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lightning_gradsched import GradientScheduler, GradSchedConfig
from tests.ranks import run_ranks

WIDTH = 6
State = list[Tensor]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 1)
        self.norm = nn.BatchNorm1d(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(torch.tanh(self.norm(self.encode(x))))


def train(net: nn.Module, forward: nn.Module, rank: int) -> list[State]:
    generator = torch.Generator().manual_seed(rank)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    steps = []
    for _ in range(4):
        optimizer.zero_grad()
        forward(torch.randn(4, WIDTH, generator=generator)).square().mean().backward()
        optimizer.step()
        steps.append([v.clone() for v in (*(p.grad for p in net.parameters()), *net.buffers())])
    return steps


def compiled(rank: int, order: str) -> tuple[list[State], list[State]]:
    torch.manual_seed(0)
    ours = Net()
    theirs = deepcopy(ours)
    # The graph is traced; machine code of it would need a compiler.
    forward = torch.compile(ours, backend="aot_eager")
    config = GradSchedConfig(planner="per_tensor")
    scheduler = GradientScheduler(forward if order == "compile, attach" else ours, config)
    steps = train(ours, forward, rank)
    scheduler.detach()
    return steps, train(theirs, DistributedDataParallel(theirs), rank)


@pytest.mark.slow
@pytest.mark.parametrize("order", ["compile, attach", "attach, compile"])
def test_a_compiled_module_is_reduced_as_by_ddp(order: str) -> None:
    ranks = run_ranks(2, compiled, order)
    for ours, theirs in ranks:
        for step, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            for ours_value, value in zip(a, b, strict=True):
                torch.testing.assert_close(ours_value, value, msg=f"step {step}")
    n_params = len(list(Net().parameters()))
    for a, b in zip(ranks[0][0], ranks[1][0], strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a[:n_params], b[:n_params], strict=True))

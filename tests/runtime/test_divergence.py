"""Ranks whose graphs differ, in another way each step: the mean, with zeros for what is unused."""

from __future__ import annotations

import random
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_gradsched import GradientScheduler, GradSchedConfig
from tests.parity.nets import WIDTH
from tests.parity.reference import average_gradients
from tests.ranks import run_ranks

N_STEPS = 12


def linear(n: int) -> nn.Linear:
    """Of other sizes than its neighbours', so that a mix-up of groups cannot go unseen."""
    return nn.Linear(WIDTH, n)


class Branch(nn.Module):
    """One of two arms, or both: chosen by each rank for itself."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = nn.Linear(WIDTH, WIDTH), linear(3), linear(5)

    def forward(self, x: Tensor, chance: random.Random) -> Tensor:
        x = torch.tanh(self.stem(x))
        arms = chance.choice([[self.left], [self.right], [self.left, self.right]])
        return sum(arm(x).sum() for arm in arms)


class StochasticDepth(nn.Module):
    """Each block is left out at random; all of them sometimes."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, n), nn.Tanh(), nn.Linear(n, WIDTH)) for n in range(2, 8)
        )
        self.head = linear(2)

    def forward(self, x: Tensor, chance: random.Random) -> Tensor:
        for block in self.blocks:
            if chance.random() < 0.5:
                x = x + block(x)
        return self.head(x).square().sum()


class MixtureOfExperts(nn.Module):
    """Each example goes to two experts, by a gate: a rank meets some of them, in order of need."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = linear(7)
        self.experts = nn.ModuleList(linear(n) for n in range(2, 9))

    def forward(self, x: Tensor, chance: random.Random) -> Tensor:
        weights, chosen = self.gate(x).softmax(1).topk(2)
        needed = chosen.unique().tolist()
        chance.shuffle(needed)
        return sum(
            (weights * (chosen == i)).sum(1) @ self.experts[i](x).square().mean(1) for i in needed
        )


class AnyOrder(nn.Module):
    """All layers, in another order each time, one of them twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, n), nn.Linear(n, WIDTH)) for n in range(2, 6)
        )

    def forward(self, x: Tensor, chance: random.Random) -> Tensor:
        order = chance.sample(range(4), 4)
        for i in [*order, order[0]]:
            x = x + torch.tanh(self.layers[i](x))
        return x.square().mean()


class ReentrantDepth(StochasticDepth):
    """Which blocks run is hidden from the graph as well."""

    def forward(self, x: Tensor, chance: random.Random) -> Tensor:
        x = self.blocks[0](x)
        for block in self.blocks[1:]:
            if chance.random() < 0.5:
                x = x + checkpoint(block, x, use_reentrant=True)
        return self.head(x).square().sum()


NETS = [Branch, StochasticDepth, MixtureOfExperts, AnyOrder, ReentrantDepth]


def steps(
    rank: int, make: type[nn.Module], schedule: str, planner: str, n_backwards: int
) -> list[tuple[str, list[Tensor | None]]]:
    """Of each step, what is unlike the reference, and the gradients."""
    torch.manual_seed(0)
    net = make()
    plain = deepcopy(net)
    config = GradSchedConfig(planner=planner, schedule=schedule, group_nbytes=300)
    scheduler = GradientScheduler(net, config)
    seen = []
    for step in range(N_STEPS):
        x = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(10 * step + rank))
        for module in (net, plain):
            module.zero_grad()
            chance = random.Random(100 * step + rank)
            for scale in range(1, n_backwards + 1):
                loss = module(scale * x, chance)
                if module is net:
                    scheduler.prepare(loss)
                loss.backward()
        average_gradients(plain)
        unlike = [
            name
            for (name, p), q in zip(net.named_parameters(), plain.parameters(), strict=True)
            if not _alike(p.grad, q.grad)
        ]
        seen.append((f"{unlike}", [_copy(p.grad) for p in net.parameters()]))
    scheduler.detach()
    return seen


def _copy(grad: Tensor | None) -> Tensor | None:
    return None if grad is None else grad.clone()


def _alike(ours: Tensor | None, theirs: Tensor | None) -> bool:
    if ours is None or theirs is None:
        return ours is theirs
    # Of three summands the order is the backend's, and of several backwards each is averaged.
    return torch.allclose(ours, theirs, rtol=1e-4, atol=1e-6 * float(theirs.abs().max()))


def check(make: type[nn.Module], schedule: str, planner: str, n_backwards: int = 1) -> None:
    ranks = run_ranks(3, steps, make, schedule, planner, n_backwards)
    for seen in ranks:
        for step, (unlike, grads) in enumerate(seen):
            assert unlike == "[]", step
            for ours, first in zip(grads, ranks[0][step][1], strict=True):
                assert (ours is first is None) or torch.equal(ours, first), step


@pytest.mark.parametrize("planner", ["per_tensor", "fixed_size"])
@pytest.mark.parametrize("schedule", ["static", "negotiated"])
@pytest.mark.parametrize("make", NETS)
def test_they_are_reduced_as_the_reference(
    make: type[nn.Module], schedule: str, planner: str
) -> None:
    check(make, schedule, planner)


@pytest.mark.parametrize("schedule", ["static", "negotiated"])
@pytest.mark.parametrize("make", [Branch, MixtureOfExperts])
def test_so_are_several_backwards_a_step(make: type[nn.Module], schedule: str) -> None:
    check(make, schedule, "per_tensor", n_backwards=3)

"""What an engine must bear, with each mode: the weights are, to the bit, those of no mode.

With ``gradient_lag``, those of gradients that are held back.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_gradsched import GradientScheduler, GradSchedConfig
from tests import modes
from tests.parity.nets import WIDTH
from tests.ranks import run_ranks

# Of which the weights are those of no mode.
MODES = {name: modes.MODES[name] for name in ("overlap_forward", "shard_optimizer")}
N_STEPS = 8


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.head = nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor, branches: str = "lr") -> Tensor:
        x = torch.tanh(self.stem(x))
        for name, layer in (("l", self.left), ("r", self.right)):
            if name in branches:
                x = x + torch.tanh(layer(x))
        return self.head(x)


class CutOffError(Exception):
    """Of a backward."""


class Cuts(torch.autograd.Function):
    """Its backward raises."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        raise CutOffError


class Job:
    """One rank's net, engine and optimizer."""

    def __init__(self, rank: int, mode: dict[str, Any], **config: Any) -> None:
        torch.manual_seed(0)
        self.rank, self.net = rank, Branches()
        self.most_open = 0  # groups or weights left to the next forward
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=0.05)
        if config.pop("frozen", False):
            self.net.stem.requires_grad_(False)
        self.scheduler = GradientScheduler(
            self.net, GradSchedConfig(**{"planner": "per_tensor", **mode, **config})
        )
        modes.attach(self.scheduler, self.optimizer, mode)

    def batch(self, number: int) -> Tensor:
        return torch.randn(
            3, WIDTH, generator=torch.Generator().manual_seed(10 * number + self.rank)
        )

    def backward(self, number: int, branches: str = "lr") -> None:
        self.net(self.batch(number), branches).square().mean().backward()

    def update(self) -> None:
        self.optimizer.step()
        self.most_open = max(self.most_open, self.scheduler.n_open)
        self.optimizer.zero_grad()

    def weights(self) -> list[Tensor]:
        self.scheduler.detach()
        return [param.detach().clone() for param in self.net.parameters()]


class Delayed(Job):
    """Without a mode: each update is of the gradients of the one before, the first of zeros."""

    held: list[Tensor] | None = None

    def update(self) -> None:
        params = list(self.net.parameters())
        came = [param.grad.clone() for param in params]
        for param, grad in zip(params, self.held or map(torch.zeros_like, came), strict=True):
            param.grad = grad
        self.held = came
        super().update()


def unused(job: Job) -> None:
    """Other branches on each rank, now and then one that no rank takes."""
    for step in range(N_STEPS):
        job.backward(step, ("l", "r", "lr", "", "r")[(step + job.rank) % 5 if step % 3 else 1])
        job.update()


def skipped(job: Job) -> None:
    for step in range(N_STEPS):
        if step % 3 == job.rank:
            job.net(job.batch(step))
            job.scheduler.skip_backward()
        else:
            job.backward(step)
        job.update()


def accumulated(job: Job) -> None:
    for step in range(N_STEPS):
        with nullcontext() if step % 2 else job.scheduler.no_sync():
            job.backward(step)
        if step % 2:
            job.update()


def joined(job: Job) -> None:
    for x in job.scheduler.join([job.batch(i) for i in range(3 + 3 * job.rank)], "active"):
        if x is None:
            job.scheduler.skip_backward()
        else:
            job.net(x).square().mean().backward()
        job.update()


def unfrozen(job: Job) -> None:
    for step in range(N_STEPS):
        if step == 3:
            job.net.stem.requires_grad_(True)
        job.backward(step)
        job.update()


def cut_off(job: Job) -> None:
    """On all ranks alike, in the middle of backward; then the next step is right."""
    for step in range(N_STEPS):
        if step in (2, 5):
            hidden = Cuts.apply(torch.tanh(job.net.stem(job.batch(step))))
            loss = job.net.head(hidden).square().mean()
            job.scheduler.prepare(loss)
            with pytest.raises(CutOffError):
                loss.backward()
            job.optimizer.zero_grad()
            continue
        job.backward(step)
        job.update()


def clipped(job: Job) -> None:
    for step in range(N_STEPS):
        job.backward(step)
        nn.utils.clip_grad_norm_(job.net.parameters(), 0.05)
        job.update()


def double_backward(job: Job) -> None:
    for step in range(N_STEPS):
        x = job.batch(step).requires_grad_()
        loss = job.net(x).square().mean()
        (grad,) = torch.autograd.grad(loss, x, create_graph=True)
        (loss + grad.square().sum()).backward()
        job.update()


CASES: dict[str, tuple[Callable[[Job], None], dict[str, Any]]] = {
    "unused": (unused, {}),
    "skipped": (skipped, {}),
    "accumulated": (accumulated, {}),
    "joined": (joined, {}),
    "unfrozen": (unfrozen, {"frozen": True}),
    "cut off": (cut_off, {}),
    "clipped": (clipped, {}),
    "double backward": (double_backward, {}),
    "a plan from measurements": (double_backward, {"planner": "optimal"}),
}


def trained(rank: int, case: str) -> dict[str, tuple[list[Tensor], int]]:
    run, config = CASES[case]
    results = {}
    for name, mode in {"none": {}, **MODES}.items():
        job = Job(rank, mode, **config)
        run(job)
        results[name] = job.weights(), job.most_open
    return results


def equal(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize("case", CASES)
def test_the_weights_are_those_of_no_mode(case: str) -> None:
    for results in run_ranks(2, trained, case):
        plain, _ = results["none"]
        for mode in MODES:
            weights, most_open = results[mode]
            assert equal(weights, plain), mode
            # Who clips by norm looks at all gradients before the step; a measured plan of so small
            # a net may be one group.
            may_have_none = case in ("clipped", "a plan from measurements")
            assert most_open > 0 or (may_have_none and mode == "overlap_forward")


def lagged(rank: int, case: str) -> tuple[list[Tensor], list[Tensor]]:
    run, config = CASES[case]
    ours, reference = Job(rank, {"gradient_lag": 1}, **config), Delayed(rank, {}, **config)
    run(ours)
    run(reference)
    return ours.weights(), reference.weights()


@pytest.mark.parametrize("case", ["skipped", "accumulated", "double backward"])
def test_with_lag_they_are_those_of_gradients_held_back(case: str) -> None:
    for ours, reference in run_ranks(2, lagged, case):
        assert equal(ours, reference)

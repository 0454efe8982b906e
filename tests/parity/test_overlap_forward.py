"""Weights after whole steps, reductions going on into the next forward: beside DDP, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from lightning_gradsched import GradientScheduler, GradSchedConfig
from tests.parity.nets import NETS, WIDTH, SharedReentrant
from tests.ranks import run_ranks
from zoo.optim.larc import with_larc

N_STEPS = 5
Weights = dict[str, Tensor]

OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "SGD": partial(torch.optim.SGD, lr=0.1),
    "SGD with momentum": partial(
        torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-2
    ),
    "Adam": partial(torch.optim.Adam, lr=0.01, amsgrad=True),
    "AdamW": partial(torch.optim.AdamW, lr=0.01),
    # Schedulers change it in place, so each optimizer has one of its own.
    "AdamW of a tensor": lambda groups: torch.optim.AdamW(groups, lr=torch.tensor(0.01)),
    "RMSprop": partial(torch.optim.RMSprop, lr=0.01, momentum=0.5),
    "Adagrad": partial(torch.optim.Adagrad, lr=0.01),
    "Adamax": partial(torch.optim.Adamax, lr=0.01),
    "Adadelta": partial(torch.optim.Adadelta, lr=1.0),
    "Adafactor": partial(torch.optim.Adafactor, lr=0.01),
    "ASGD": partial(torch.optim.ASGD, lr=0.01),
    "NAdam": partial(torch.optim.NAdam, lr=0.01),
    "RAdam": partial(torch.optim.RAdam, lr=0.01),
    "Rprop": partial(torch.optim.Rprop, lr=0.01),
}
# By hooks on the step, which look at gradients before it or at weights after it.
LARC: dict[str, Callable[[Any], Optimizer]] = {
    "LARC": partial(with_larc, optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9), eta=0.02),
    "LARC of the gradient": partial(
        with_larc, optimizer=partial(torch.optim.Adam, lr=0.01), eta=0.02, placement="gradient"
    ),
}


class Recipe(NamedTuple):
    """How to train; ``planner`` is gradsched's."""

    net: str = "residual"
    optimizer: str = "SGD with momentum"
    accumulate: int = 1
    clip_norm: float | None = None
    autocast: bool = False
    zero_in_place: bool = False
    with_closure: bool = False
    planner: str = "per_tensor"
    reduce_dtype: str | None = None


def make(name: str) -> nn.Module:
    torch.manual_seed(0)
    return SharedReentrant() if name == "shared_reentrant" else NETS[name]()


def batches(rank: int, accumulate: int) -> Iterator[list[Tensor]]:
    generator = torch.Generator().manual_seed(100 + rank)
    for _ in range(N_STEPS):
        yield [torch.randn(3, WIDTH, generator=generator) for _ in range(accumulate)]


def train(
    net: nn.Module,
    rank: int,
    recipe: Recipe,
    *,
    forward: Callable[[Tensor], Tensor],
    no_sync: Callable[[], Any],
    overlap: Callable[[Optimizer], None] = lambda _: None,
) -> None:
    """Two groups of parameters with rates of their own, both on a schedule."""
    params = list(net.parameters())
    groups = [{"params": params[::2]}, {"params": params[1::2]}]
    optimizer = {**OPTIMIZERS, **LARC}[recipe.optimizer](groups)
    optimizer.param_groups[1]["lr"] = optimizer.param_groups[1]["lr"] / 2
    overlap(optimizer)
    rates = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.5)
    for batch in batches(rank, recipe.accumulate):

        def closure(batch: list[Tensor] = batch) -> None:
            optimizer.zero_grad(set_to_none=not recipe.zero_in_place)
            for i, x in enumerate(batch):
                with nullcontext() if i == len(batch) - 1 else no_sync():
                    with torch.autocast("cpu", torch.bfloat16, enabled=recipe.autocast):
                        loss = torch.cos(forward(x)).mean()
                    loss.backward()
            if recipe.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(net.parameters(), recipe.clip_norm)

        if recipe.with_closure:
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()
        rates.step()


def weights(net: nn.Module) -> Weights:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def both(rank: int, recipe: Recipe) -> tuple[Weights, Weights, int]:
    """gradsched's, DDP's, and how many groups gradsched's last step has left open."""
    ours, theirs = make(recipe.net), make(recipe.net)
    config = GradSchedConfig(
        planner=recipe.planner,
        overlap_forward=True,
        scatter_gradients=False,
        reduce_dtype=recipe.reduce_dtype,
    )
    scheduler = GradientScheduler(ours, config)
    train(
        ours,
        rank,
        recipe,
        forward=ours,
        no_sync=scheduler.no_sync,
        overlap=scheduler.overlap,
    )
    n_open = scheduler.n_open
    scheduler.flush()
    # The others can do without DDP, which refuses the shared block.
    if recipe.net == "shared_reentrant":
        plain = GradientScheduler(theirs, GradSchedConfig(planner="single"))
        train(theirs, rank, recipe, forward=theirs, no_sync=plain.no_sync)
        plain.detach()
    else:
        ddp = DistributedDataParallel(theirs)
        train(theirs, rank, recipe, forward=ddp, no_sync=ddp.no_sync)
    result = weights(ours), weights(theirs), n_open
    scheduler.detach()
    return result


def all_of(rank: int, recipes: list[Recipe]) -> list[tuple[Weights, Weights, int]]:
    return [both(rank, recipe) for recipe in recipes]


def check(*recipes: Recipe, leaves_open: bool = True, n_ranks: int = 2) -> None:
    ranks = run_ranks(n_ranks, all_of, list(recipes), timeout_s=120)
    for rank in ranks:
        for recipe, (ours, ddp, n_open), (first, *_) in zip(recipes, rank, ranks[0], strict=True):
            assert (n_open > 0) is leaves_open, recipe
            check_alike(recipe, ours, first, ddp, n_ranks)


def check_alike(recipe: object, ours: Weights, first: Weights, ddp: Weights, n_ranks: int) -> None:
    """To the last bit on all ranks, and with DDP's on two; on more they are summed otherwise."""
    for name, weight in ours.items():
        assert torch.equal(weight, first[name]), (recipe, name)
        if n_ranks == 2:
            assert torch.equal(weight, ddp[name]), (recipe, name)
        else:
            torch.testing.assert_close(weight, ddp[name], rtol=2e-5, atol=2e-6)


def test_optimizers() -> None:
    check(*(Recipe(optimizer=optimizer) for optimizer in OPTIMIZERS))


def test_larc_looks_and_so_ends_the_wait() -> None:
    check(*(Recipe(optimizer=optimizer) for optimizer in LARC), leaves_open=False)


def test_three_ranks() -> None:
    check(Recipe(), Recipe(optimizer="AdamW", accumulate=2, autocast=True), n_ranks=3)


def test_nets() -> None:
    check(*(Recipe(net=net, optimizer="AdamW") for net in [*NETS, "shared_reentrant"]))


def test_recipes() -> None:
    check(
        Recipe(accumulate=3),
        Recipe(autocast=True),
        Recipe(zero_in_place=True),
        Recipe(with_closure=True),
        Recipe(accumulate=2, with_closure=True, autocast=True, optimizer="Adam"),
    )


def test_who_looks_at_all_gradients_ends_the_wait_and_finds_them_complete() -> None:
    check(
        Recipe(clip_norm=0.01),
        Recipe(clip_norm=0.01, with_closure=True, optimizer="Adam"),
        leaves_open=False,
    )


def test_one_group_is_waited_for_by_backward() -> None:
    check(Recipe(planner="ddp"), Recipe(planner="single"), leaves_open=False)

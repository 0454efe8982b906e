"""A few steps of training with a mode on, and the same ones with DDP: weights, norms, scales."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from math import inf
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from lightning_gradsched import GradientScheduler, GradSchedConfig
from tests import modes
from tests.parity.nets import NETS, WIDTH, SharedReentrant
from tests.ranks import run_ranks
from zoo.optim.larc import with_larc

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
# GradScaler leaves the unscaling to its step.
FUSED = {"fused Adam": partial(torch.optim.Adam, lr=0.01, fused=True)}


class Recipe(NamedTuple):
    """How to train; ``planner`` and ``reduce_dtype`` are gradsched's."""

    n_steps: int = 5
    net: str = "residual"
    optimizer: str = "SGD with momentum"
    accumulate: int = 1
    max_norm: float | None = None  # by which gradients are clipped
    norm: float = 2.0  # of which order
    max_value: float | None = None
    foreach: bool | None = None
    init_scale: float | None = None  # of a GradScaler; None for none
    unscales: bool = True  # before the scaler's step, which does it otherwise
    inf_at: int | None = None  # the step at which rank 1 has an infinite gradient
    autocast: bool = False
    zero_in_place: bool = False
    with_closure: bool = False
    planner: str = "per_tensor"
    reduce_dtype: str | None = None


class Trained(NamedTuple):
    """``n_open`` and ``state_nbytes`` after the last step, of this rank."""

    weights: Weights
    norms: list[float]
    scale: float | None
    n_open: int
    state_nbytes: int


def make(name: str) -> nn.Module:
    torch.manual_seed(0)
    return SharedReentrant() if name == "shared_reentrant" else NETS[name]()


def weights(net: nn.Module) -> Weights:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def state_nbytes(optimizer: Optimizer) -> int:
    values = (value for state in optimizer.state.values() for value in state.values())
    return sum(value.nbytes for value in values if isinstance(value, Tensor) and value.ndim)


def batches(rank: int, recipe: Recipe) -> Iterator[list[Tensor]]:
    generator = torch.Generator().manual_seed(100 + rank)
    for step in range(recipe.n_steps):
        batch = [torch.randn(3, WIDTH, generator=generator) for _ in range(recipe.accumulate)]
        if step == recipe.inf_at and rank == 1:
            batch[0][0, 0] = inf
        yield batch


def clip(net: nn.Module, recipe: Recipe) -> float:
    """The norm by which it was clipped, 0 for none."""
    norm = 0.0
    if recipe.max_norm is not None:
        total = nn.utils.clip_grad_norm_(
            net.parameters(), recipe.max_norm, recipe.norm, foreach=recipe.foreach
        )
        norm = total.item()
    if recipe.max_value is not None:
        nn.utils.clip_grad_value_(net.parameters(), recipe.max_value, foreach=recipe.foreach)
    return norm


def optimizer_of(net: nn.Module, name: str) -> Optimizer:
    """Two groups of parameters with rates of their own."""
    params = list(net.parameters())
    groups = [{"params": params[::2]}, {"params": params[1::2]}]
    optimizer = {**OPTIMIZERS, **LARC, **FUSED}[name](groups)
    optimizer.param_groups[1]["lr"] = optimizer.param_groups[1]["lr"] / 2
    return optimizer


def train(
    net: nn.Module,
    optimizer: Optimizer,
    rank: int,
    recipe: Recipe,
    forward: Callable[[Tensor], Tensor],
    no_sync: Callable[[], Any],
) -> tuple[list[float], float | None]:
    """On a schedule of rates; the norms, and the scale at the end."""
    rates = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.5)
    scaler = torch.amp.GradScaler(
        "cpu",
        init_scale=recipe.init_scale or 1.0,
        growth_interval=2,
        enabled=bool(recipe.init_scale),
    )
    norms = []
    for batch in batches(rank, recipe):

        def closure(batch: list[Tensor] = batch) -> None:
            optimizer.zero_grad(set_to_none=not recipe.zero_in_place)
            for i, x in enumerate(batch):
                with nullcontext() if i == len(batch) - 1 else no_sync():
                    with torch.autocast("cpu", torch.bfloat16, enabled=recipe.autocast):
                        loss = torch.cos(forward(x)).mean()
                    scaler.scale(loss).backward()
            if recipe.unscales:
                scaler.unscale_(optimizer)
            norms.append(clip(net, recipe))

        if recipe.with_closure:
            optimizer.step(closure)
        else:
            closure()
            scaler.step(optimizer)
            scaler.update()
        rates.step()
    return norms, scaler.get_scale() if recipe.init_scale else None


def ours(rank: int, recipe: Recipe, settings: dict[str, Any]) -> Trained:
    net = make(recipe.net)
    planner = {"planner": recipe.planner, "reduce_dtype": recipe.reduce_dtype}
    scheduler = GradientScheduler(net, GradSchedConfig(**{**planner, **settings}))
    optimizer = optimizer_of(net, recipe.optimizer)
    modes.attach(scheduler, optimizer, settings)
    norms, scale = train(net, optimizer, rank, recipe, net, scheduler.no_sync)
    n_open = scheduler.n_open
    looked_at = weights(net)
    assert scheduler.n_open == 0, "who looks at all weights waits for all"
    scheduler.detach()
    return Trained(looked_at, norms, scale, n_open, state_nbytes(optimizer))


def theirs(rank: int, recipe: Recipe) -> Trained:
    """DDP's; where it refuses the net, a plain engine's, which can do without it."""
    net = make(recipe.net)
    optimizer = optimizer_of(net, recipe.optimizer)
    if recipe.net == "shared_reentrant":
        scheduler = GradientScheduler(net, GradSchedConfig(planner="single"))
        trained = train(net, optimizer, rank, recipe, net, scheduler.no_sync)
        scheduler.detach()
    else:
        ddp = DistributedDataParallel(net)
        trained = train(net, optimizer, rank, recipe, ddp, ddp.no_sync)
    return Trained(weights(net), *trained, 0, state_nbytes(optimizer))


def all_of(
    rank: int, recipes: Sequence[Recipe], settings: dict[str, Any]
) -> list[tuple[Trained, Trained]]:
    """gradsched's and DDP's."""
    return [(ours(rank, recipe, settings), theirs(rank, recipe)) for recipe in recipes]


def check(
    *recipes: Recipe, settings: dict[str, Any], leaves_open: bool | None = True, n_ranks: int = 2
) -> list[list[tuple[Trained, Trained]]]:
    """Each rank's, by recipe, found to be as they should. ``leaves_open``: None for either."""
    ranks = run_ranks(n_ranks, all_of, recipes, settings, timeout_s=120)
    for rank in ranks:
        for recipe, (mine, ddp), (first, _) in zip(recipes, rank, ranks[0], strict=True):
            assert leaves_open in (None, mine.n_open > 0), recipe
            assert repr(mine.norms) == repr(first.norms), recipe
            assert mine.scale == ddp.scale, recipe
            if n_ranks == 2:
                assert repr(mine.norms) == repr(ddp.norms), recipe
            check_alike(recipe, mine.weights, first.weights, ddp.weights, n_ranks)
    return ranks


def check_alike(recipe: object, mine: Weights, first: Weights, ddp: Weights, n_ranks: int) -> None:
    """To the last bit on all ranks, and with DDP's on two; on more they are summed otherwise."""
    for name, weight in mine.items():
        assert torch.equal(weight, first[name]), (recipe, name)
        if n_ranks == 2:
            assert torch.equal(weight, ddp[name]), (recipe, name)
        else:
            torch.testing.assert_close(weight, ddp[name], rtol=2e-5, atol=2e-6)

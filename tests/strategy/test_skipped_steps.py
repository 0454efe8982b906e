"""Under Lightning a rank has nothing to differentiate, or fewer batches than the others."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_gradsched import GradSchedStrategy
from tests.ranks import errors_of_ranks, run_ranks
from tests.strategy import modules
from tests.strategy.test_fit import trainer


class Skips(modules.Regression):
    """On some ranks some steps have no loss; ``how``: None, a constant, or the zero they equal."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def skips(self, batch_idx: int) -> bool:
        return (batch_idx + self.global_rank) % 3 == 0  # rank 0 the very first

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor | None:
        loss = super().training_step(batch, batch_idx)
        if not self.skips(batch_idx):
            return loss
        return {"none": None, "constant": torch.ones(()), "zero": 0 * loss}[self.how]


class SkipsByHand(Skips):
    """Manual optimization: a constant loss may be given to ``manual_backward`` as any other."""

    def __init__(self, how: str) -> None:
        super().__init__(how)
        self.automatic_optimization = False

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        loss = super().training_step(batch, batch_idx)
        if loss is None:
            self.trainer.strategy.scheduler.skip_backward()
        else:
            self.manual_backward(loss)
        optimizer.step()


def loss_scaling() -> MixedPrecision:
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    return MixedPrecision("16-mixed", "cpu", scaler=scaler)


def fit(
    rank: int, make: Any, how: str, strategy: str, options: dict[str, Any]
) -> dict[str, Tensor]:
    pl.seed_everything(0, verbose=False)
    module = make(how)
    if "scaler" in options:
        options = {"plugins": [loss_scaling()]}
    trainer(strategy, **options).fit(module)
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize(
    "options",
    [{}, {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1}, {"scaler": True}],
    ids=["plain", "accumulation", "loss_scaling"],
)
@pytest.mark.parametrize(("make", "how"), [(Skips, "none"), (Skips, "constant")])
def test_such_a_step_ends_as_one_with_a_zero_loss_under_ddp(
    make: Any, how: str, options: dict[str, Any]
) -> None:
    ours = run_ranks(2, fit, make, how, "gradsched", options)
    theirs = run_ranks(2, fit, make, "zero", "ddp", options)
    for rank in range(2):
        for name, value in theirs[rank].items():
            assert torch.equal(ours[rank][name], value), (rank, name)


@pytest.mark.parametrize("how", ["none", "constant"])
def test_so_does_one_of_manual_optimization(how: str) -> None:
    ours = run_ranks(2, fit, SkipsByHand, how, "gradsched", {})
    theirs = run_ranks(2, fit, SkipsByHand, "zero", "ddp", {})
    assert all(torch.equal(ours[1][name], value) for name, value in theirs[0].items())


class AlwaysConstant(modules.Regression):
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return torch.ones(())


class AlwaysNone(modules.Regression):
    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        return None


def fit_plainly(rank: int, make: Any, scales: bool) -> bool:
    pl.seed_everything(0, verbose=False)
    module = make()
    before = module.encode.weight.detach().clone()
    trainer("gradsched", max_epochs=1, plugins=[loss_scaling()] if scales else []).fit(module)
    return torch.equal(module.encode.weight, before)


def test_a_loss_that_is_constant_everywhere_is_torchs_error_on_all_ranks() -> None:
    for message in errors_of_ranks(2, fit_plainly, AlwaysConstant, False):
        assert message.startswith("RuntimeError: element 0 of tensors does not require grad")


@pytest.mark.parametrize("scales", [False, True])
def test_a_step_that_all_ranks_skip_moves_no_weight(scales: bool) -> None:
    assert run_ranks(2, fit_plainly, AlwaysNone, scales) == [True, True]


class Uneven(modules.Regression):
    """Rank 1 has half of the batches, from a loader that Lightning leaves alone."""

    def train_dataloader(self) -> DataLoader[Any]:
        data = super().train_dataloader().dataset
        n_examples = len(data) // (1 + self.global_rank)
        return DataLoader(torch.utils.data.Subset(data, range(n_examples)), batch_size=4)


def fit_uneven(rank: int, options: dict[str, Any]) -> int:
    pl.seed_everything(0, verbose=False)
    run = trainer("gradsched", **{"use_distributed_sampler": False, **options})
    run.fit(Uneven())
    return run.global_step


def test_uneven_loaders_are_named_on_all_ranks_before_the_first_step() -> None:
    for message in errors_of_ranks(2, fit_uneven, {}):
        assert message.startswith("ConsensusError: expected all ranks to have as many training")
        assert "got [12, 6] by rank" in message
        assert "limit_train_batches=6" in message


@pytest.mark.parametrize(
    "options", [{"limit_train_batches": 6}, {"max_steps": 20, "max_epochs": -1}]
)
def test_what_makes_the_steps_even_works(options: dict[str, Any]) -> None:
    first, second = run_ranks(2, fit_uneven, options)
    assert first == second


class Counted(Uneven):
    """Notes how many training steps it has run, and what Lightning and callbacks see of batches."""

    def __init__(self) -> None:
        super().__init__()
        self.n_steps = self.n_batches = 0

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.n_steps += 1
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss, on_step=False, on_epoch=True, sync_dist=True)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: list[Tensor], batch_idx: int) -> None:
        self.n_batches += 1
        assert batch[0].shape == (4, modules.WIDTH)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("valid", F.mse_loss(self(batch[0]), batch[1]), sync_dist=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return super().train_dataloader()

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 5)]


def fit_counted(
    rank: int, divide_by: str, accumulate: int
) -> tuple[dict[str, Tensor], tuple[int, ...]]:
    pl.seed_everything(0, verbose=False)
    module = Counted()
    strategy = GradSchedStrategy(uneven_batches=divide_by)
    run = trainer(strategy, use_distributed_sampler=False, accumulate_grad_batches=accumulate)
    run.fit(module)
    weights = {name: value.detach().clone() for name, value in module.state_dict().items()}
    return weights, (run.global_step, module.n_steps, module.n_batches)


def by_hand(divide_by: str, accumulate: int) -> dict[str, Tensor]:
    """The same in one process: rank 0 has 12 batches an epoch, rank 1 the first 6 of them."""
    pl.seed_everything(0, verbose=False)
    module = modules.Regression()
    optimizer = module.configure_optimizers()
    batches = list(module.train_dataloader())
    for _ in range(2):
        for first in range(0, 12, accumulate):
            window = range(first, first + accumulate)
            losses = [F.mse_loss(module(batches[i][0]), batches[i][1]) for i in window]
            weights = [2.0 if i < 6 else 1.0 for i in window]  # how many ranks have it
            n_ranks = 2 if divide_by == "all" or first < 6 else 1
            total = sum(w * loss for w, loss in zip(weights, losses, strict=True))
            optimizer.zero_grad()
            (total / (n_ranks * accumulate)).backward()
            optimizer.step()
    return dict(module.state_dict())


@pytest.mark.parametrize("divide_by", ["all", "active"])
@pytest.mark.parametrize("accumulate", [1, 4])
def test_uneven_loaders_are_trained_to_the_end_of_the_longest(
    divide_by: str, accumulate: int
) -> None:
    ranks = run_ranks(2, fit_counted, divide_by, accumulate)
    expected = by_hand(divide_by, accumulate)
    for rank, (weights, counts) in enumerate(ranks):
        assert counts == (24 // accumulate, (24, 12)[rank], 24)
        for name, value in weights.items():
            assert torch.equal(value, ranks[0][0][name]), name
            torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6, msg=name)


class TwoLoaders(Uneven):
    def train_dataloader(self) -> Any:
        return [super().train_dataloader(), super().train_dataloader()]


class Endless(torch.utils.data.IterableDataset):
    def __iter__(self) -> Any:
        return iter(())


class Unsized(modules.Regression):
    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Endless())


def fit_padded(rank: int, make: type[pl.LightningModule], arguments: tuple[str, ...]) -> None:
    strategy = GradSchedStrategy(uneven_batches="all")
    trainer(strategy, use_distributed_sampler=False).fit(make(*arguments))


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (TwoLoaders, (), "expected one train dataloader and automatic optimization, got list"),
        (SkipsByHand, ("none",), "automatic_optimization=False"),
        (Unsized, (), "got [None, None] batches by rank"),
    ],
)
def test_a_loader_that_cannot_be_padded_is_refused(
    make: type[pl.LightningModule], arguments: tuple[str, ...], message: str
) -> None:
    for error in errors_of_ranks(2, fit_padded, make, arguments):
        assert error.startswith("GradSchedError: uneven_batches: ")
        assert message in error


class SyncedNorm(Uneven):
    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.SyncBatchNorm(1)


def test_a_forward_that_waits_for_all_ranks_is_refused() -> None:
    for error in errors_of_ranks(2, fit_padded, SyncedNorm, ()):
        assert error.startswith("GradSchedError: expected layers whose forward needs no other rank")

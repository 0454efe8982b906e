"""Whole fits with ``gradient_lag=1``: beside ``ddp`` with a callback that holds gradients back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric import Fabric
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor

from lightning_gradsched import GradSchedStrategy
from lightning_gradsched.fabric import GradSchedFabricStrategy
from tests.ranks import errors_of_ranks, run_ranks
from tests.strategy import modules
from tests.strategy.test_fit import trainer
from tests.strategy.test_overlap_forward import Scheduled
from tests.survival.jobs import Net

Weights = dict[str, Tensor]


class HoldBack(Callback):
    """The plain reference: an update gets the gradients of the update before; the first, zeros."""

    def __init__(self) -> None:
        self.before: dict[str, Tensor] = {}

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.fit_loop._should_accumulate():
            return
        for name, param in pl_module.named_parameters():
            mean = param.grad.clone()
            param.grad = self.before.get(name, torch.zeros_like(mean))
            self.before[name] = mean


FITS: dict[str, tuple[Any, dict[str, Any]]] = {
    "plain": (modules.Regression, {}),
    "scheduled": (Scheduled, {"val_check_interval": 2}),
    "accumulation": (Scheduled, {"accumulate_grad_batches": 3}),
    "clip_norm": (Scheduled, {"gradient_clip_val": 0.05}),
    "bf16_mixed": (modules.Regression, {"precision": "bf16-mixed"}),
    "bf16_true": (modules.Regression, {"precision": "bf16-true"}),
    "normalized": (modules.Normalized, {"accumulate_grad_batches": 2}),
}


def fit(name: str, strategy: Any, *callbacks: Callback) -> Weights:
    """Two epochs: nothing is lost between them."""
    make, options = FITS[name]
    pl.seed_everything(0, verbose=False)
    module = make()
    trainer(strategy, callbacks=list(callbacks), **options).fit(module)
    return {name: value.clone() for name, value in module.state_dict().items()}


def all_fits(rank: int) -> list[str]:
    wrong = []
    for name in FITS:
        ours = fit(name, GradSchedStrategy(planner="per_tensor", gradient_lag=1))
        reference, undelayed = fit(name, "ddp", HoldBack()), fit(name, "ddp")
        if not all(torch.equal(value, reference[key]) for key, value in ours.items()):
            wrong.append(name)
        assert not all(torch.equal(value, undelayed[key]) for key, value in ours.items())
    return wrong


@pytest.mark.slow
def test_fits_end_as_if_gradients_were_held_back() -> None:
    assert run_ranks(2, all_fits, timeout_s=240) == [[], []]


def resumed(rank: int, folder: str) -> tuple[list[Weights], dict[str, Tensor]]:
    """Ten steps over two epochs, in one go, and from checkpoints of the first and between both."""
    results = []
    for first_step in (0, 4, 6):
        pl.seed_everything(rank + first_step, verbose=False)
        module = Net()
        run = trainer(
            GradSchedStrategy(planner="per_tensor", gradient_lag=1),
            folder,
            max_epochs=None,
            max_steps=10,
            enable_checkpointing=True,
            use_distributed_sampler=False,
            callbacks=[ModelCheckpoint(folder, "{step}", every_n_train_steps=2, save_top_k=-1)]
            * (not first_step),
        )
        run.fit(module, ckpt_path=f"{folder}/step={first_step}.ckpt" if first_step else None)
        results.append({name: value.clone() for name, value in module.state_dict().items()})
    checkpoint = torch.load(Path(folder, "step=4.ckpt"), weights_only=True)
    return results, checkpoint["gradsched"]["lagged"]


def test_a_run_that_is_resumed_ends_bit_for_bit_as_one_that_went_on(tmp_path: Path) -> None:
    for (whole, *parts), lagged in run_ranks(2, resumed, str(tmp_path)):
        assert set(lagged) == {f"net.{i}.{kind}" for i in (0, 1, 3) for kind in ("weight", "bias")}
        assert all(gradient.norm() > 0 for gradient in lagged.values())
        for weights in parts:
            assert all(torch.equal(value, weights[name]) for name, value in whole.items())


class Searching(modules.Regression):
    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters())


def refused(rank: int, kind: str) -> None:
    make, options = {
        "two": (modules.TwoOptimizers, {}),
        "search": (Searching, {}),
        "scaled": (modules.Regression, {"precision": "16-mixed"}),
    }[kind]
    strategy = GradSchedStrategy(gradient_lag=1)
    if kind == "scaled":  # Lightning makes a scaler on a GPU alone
        options = {
            "plugins": [pl.plugins.MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))]
        }
    trainer(strategy, **options).fit(make())


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("two", "expected one optimizer, got 2"),
        ("search", "expected an optimizer that takes one gradient a step, got LBFGS"),
        ("scaled", "expected no loss scaling"),
    ],
)
def test_what_cannot_lag_is_refused(kind: str, message: str) -> None:
    for error in errors_of_ranks(2, refused, kind):
        assert f"gradient_lag: {message}" in error


def fabric_steps(rank: int) -> list[float]:
    fabric = Fabric(accelerator="cpu", devices=2, strategy=GradSchedFabricStrategy(gradient_lag=1))
    fabric.launch()
    net = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(net.weight)
    net, optimizer = fabric.setup(net, torch.optim.SGD(net.parameters(), lr=1.0))
    weights = []
    for step in range(3):
        optimizer.zero_grad()
        fabric.backward(net(torch.full((1, 1), 1.0 + rank + step)).sum())
        optimizer.step()
        weights.append(net.weight.item())
    return weights


def test_fabric() -> None:
    # The means of the gradients are 1.5, 2.5, 3.5.
    assert run_ranks(2, fabric_steps) == [[1.0, -0.5, -3.0]] * 2

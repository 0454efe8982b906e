"""``detect_anomaly``: a NaN in the mean over ranks is named on every rank, with whose it was."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

from lightning_gradsched import GradientScheduler, GradSchedConfig, GradSchedStrategy
from lightning_gradsched.errors import ReductionError
from tests.modes import MODES, attach
from tests.ranks import errors_of_ranks, run_ranks
from tests.strategy import modules
from tests.strategy.test_fit import trainer

NAN, INF = float("nan"), float("inf")


def backward_with(
    rank: int, values: tuple[float, float], in_anomaly_mode: bool, mode: str = ""
) -> list[float]:
    """In the second step each rank's gradient of the first bias has its ``value`` at one place."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    optimizer = torch.optim.Adam(net.parameters())
    settings = MODES[mode] if mode else {}
    config = GradSchedConfig(planner="per_tensor", stall_timeout_s=20.0, **settings)
    scheduler = GradientScheduler(net, config)
    attach(scheduler, optimizer, settings)
    for step in range(2):
        if step == 1:
            net[0].bias.register_hook(lambda grad: grad + torch.tensor([0.0, values[rank]]))
        optimizer.zero_grad()
        with torch.autograd.detect_anomaly() if in_anomaly_mode else nullcontext():
            net(torch.ones(1, 2)).sum().backward()
        if step == 0:
            optimizer.step()
    values_there: list[float] = net[0].bias.grad.tolist()
    scheduler.detach()
    return values_there


def outcomes(
    rank: int, values: tuple[float, float], in_anomaly_mode: bool, modes: tuple[str, ...]
) -> dict[str, str]:
    """By mode, what ``backward_with`` gave or raised."""
    found = {}
    for mode in modes:
        try:
            found[mode] = str(backward_with(rank, values, in_anomaly_mode, mode))
        except ReductionError as error:
            found[mode] = str(error)
    return found


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize(
    ("values", "who"),
    [
        ((0.0, NAN), "hold NaN; rank 1 sent NaN or inf in gradients of 0.bias"),
        ((INF, -INF), "rank 0 sent NaN or inf in gradients of 0.bias; rank 1 sent NaN or inf in"),
    ],
)
def test_the_parameter_and_the_rank_are_named_on_all(values: tuple[float, float], who: str) -> None:
    for found in run_ranks(2, outcomes, values, True, ("", *MODES)):
        for mode, message in found.items():
            assert message.startswith("detect_anomaly: the reduced gradients of 0.bias hold NaN"), (
                mode
            )
            assert who in message, mode


@pytest.mark.parametrize(("values", "anomaly"), [((0.0, INF), True), ((0.0, NAN), False)])
def test_otherwise_they_reach_all_ranks_alike(values: tuple[float, float], anomaly: bool) -> None:
    """An inf is loss scaling's business, in anomaly mode too; a NaN without it the optimizer's."""
    without_lag = tuple(mode for mode in ("", *MODES) if mode != "gradient_lag")
    first, second = run_ranks(2, outcomes, values, anomaly, without_lag)
    assert first == second
    for mode, found in first.items():
        assert found.endswith(f", {values[1]}]"), mode


class NanOnOneRank(modules.Regression):
    """Rank 1's gradient of one parameter is NaN, from the second step on."""

    def on_before_backward(self, loss: Tensor) -> None:
        if self.trainer.global_step == 1 and self.global_rank == 1:
            self.encode.weight.register_hook(lambda grad: grad * NAN)


def fit(rank: int, mode: str) -> Any:
    strategy = GradSchedStrategy(stall_timeout_s=20.0, **MODES.get(mode, {}))
    return trainer(strategy, detect_anomaly=True).fit(NanOnOneRank())


def check_fit(mode: str = "") -> None:
    pl.seed_everything(0, verbose=False)
    for message in errors_of_ranks(2, fit, mode):
        assert message.startswith("ReductionError: detect_anomaly: the reduced gradients of")
        assert "encode.weight" in message
        assert "; rank 1 sent NaN or inf in gradients of encode.weight" in message


@pytest.mark.slow
def test_in_lightning() -> None:
    check_fit()


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_in_lightning_in_each_mode(mode: str) -> None:
    check_fit(mode)

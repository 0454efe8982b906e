"""The generalisation bound against a toy whose covering number is known, and its callback."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from zoo.callback.generalization import Generalization
from zoo.data.digits import DigitsDataModule
from zoo.errors import PhysicsError
from zoo.loss.bound import generalization_bound, greedy_covering_number
from zoo.model.inverse import Inverse
from zoo.net.mlp import MLP
from zoo.physics.compressed_sensing import CompressedSensing


def _toy_gap_and_bound(n_samples: int, seed: int) -> tuple[float, float]:
    """x in [0, 1], y = 2 x + noise in [-0.05, 0.05]; a net fitted to few samples."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(1, 32), nn.ReLU(), nn.Linear(32, 1))
    x, x_new = torch.rand(n_samples, 1), torch.rand(4000, 1)
    y, y_new = (2 * v + 0.1 * (torch.rand_like(v) - 0.5) for v in (x, x_new))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        (net(y) - x).square().mean().backward()
        optimizer.step()
    with torch.no_grad():
        losses, new = (net(y) - x).abs(), (net(y_new) - x_new).abs()
        grid = torch.linspace(-0.05, 2.05, 4000)[:, None]
        slope = float((net(grid).diff(dim=0) / grid.diff(dim=0)).abs().max())
    worst = float(torch.cat([losses, new]).max())
    bounds = [
        generalization_bound(2 * slope, slope, psi, 0.05, worst, math.ceil(1 / psi), n_samples)
        for psi in (0.5, 0.2, 0.1, 0.05)
    ]
    return float(new.mean() - losses.mean()), min(bounds)


@pytest.mark.parametrize("n_samples", [5, 50, 500])
def test_measured_gap_is_within_the_bound(n_samples: int) -> None:
    for seed in range(3):
        gap, bound = _toy_gap_and_bound(n_samples, seed)
        assert gap <= bound


def test_bound_by_hand() -> None:
    got = generalization_bound(3.0, 2.0, 0.1, 0.05, 2.0, 10, 400, failure_probability=0.1)
    expected = 4 * 0.1 + 2 * 0.05 * 2 + 2 * math.sqrt((20 * math.log(2) + 2 * math.log(10)) / 400)
    assert got == pytest.approx(expected)


@pytest.mark.parametrize(("n_samples", "zeta"), [(0, 0.05), (10, 0.0)])
def test_bad_input_is_named(n_samples: int, zeta: float) -> None:
    with pytest.raises(ValueError, match=f"n_samples={n_samples}"):
        generalization_bound(1.0, 1.0, 0.1, 0.0, 1.0, 10, n_samples, zeta)


def test_greedy_covering() -> None:
    points = torch.tensor([[0.0], [0.1], [1.0], [1.05], [5.0]])
    assert greedy_covering_number(points, 0.5) == 3
    assert greedy_covering_number(points, 20.0) == 1


def test_callback_measures_gap_and_bound() -> None:
    operator = CompressedSensing(12, 64)
    data = DigitsDataModule(operator, n_train=5, n_val=50)
    torch.manual_seed(0)
    model = Inverse(MLP(12, 64, (16,)), torch.optim.Adam)
    values = Generalization(n_iterations=300).measure(model, data)
    weights = [model.net.layers[i].weight for i in (0, 2)]
    norms = [float(torch.linalg.matrix_norm(w.detach(), 2)) for w in weights]
    assert values["lipschitz"] == pytest.approx(norms[0] * norms[1], rel=1e-4)
    aware = float(torch.linalg.matrix_norm(weights[0].detach() @ operator.matrix.float(), 2))
    assert values["lipschitz_composed"] == pytest.approx(aware * norms[1], rel=1e-4)
    assert values["gap"] < values["bound"]


def test_callback_refuses_a_nonlinear_operator() -> None:
    operator = CompressedSensing(12, 64)
    operator.is_linear = False
    model = Inverse(MLP(12, 64), torch.optim.Adam)
    with pytest.raises(PhysicsError, match="leave this callback out"):
        Generalization().measure(model, DigitsDataModule(operator))

"""The terms of zoo.loss against dense matrices, and the callback that adds them to a loss."""

from __future__ import annotations

from functools import partial

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from tests.ranks import run_ranks
from tests.zoo.jobs import vectors_on
from zoo.callback.regularize import Regularize
from zoo.data.digits import DigitsDataModule
from zoo.ensemble import Ensemble, Objective
from zoo.errors import NonFiniteError, PhysicsError, UserError
from zoo.loss.jacobian import Jacobian
from zoo.loss.orthogonality import Orthogonality
from zoo.loss.power_iteration import PowerIteration, layer_map
from zoo.loss.spectral_product import SpectralProduct
from zoo.loss.weight_decay import WeightDecay
from zoo.model.inverse import Inverse
from zoo.net.mlp import MLP
from zoo.physics.compressed_sensing import CompressedSensing

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),
]
_CONVOLUTIONS = {
    "plain": (nn.Conv2d(2, 3, 3, padding=1), (2, 6, 7)),
    "strided": (nn.Conv2d(2, 3, 3, stride=2, padding=1), (2, 7, 6)),
    "circular": (nn.Conv2d(1, 2, 5, padding=2, padding_mode="circular"), (1, 8, 8)),
    "grouped": (nn.Conv2d(4, 4, 3, groups=2), (4, 6, 6)),
    "1d": (nn.Conv1d(2, 3, 3, dilation=2), (2, 16)),
}


def _convolution(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    """The same weights in every run: how fast the iteration converges hangs on them."""
    layer, shape = _CONVOLUTIONS[name]
    torch.manual_seed(0)
    layer.reset_parameters()
    return layer.double(), shape


def _dense(linear, shape: tuple[int, ...]) -> Tensor:
    """The matrix of a linear map, column by column."""
    basis = torch.eye(torch.Size(shape).numel(), dtype=torch.float64).view(-1, *shape)
    return torch.stack([linear(e[None]).flatten() for e in basis], dim=1)


@pytest.mark.parametrize("name", _CONVOLUTIONS)
def test_norm_of_a_convolution_is_that_of_the_operator(name: str) -> None:
    layer, shape = _convolution(name)
    expected = torch.linalg.matrix_norm(_dense(layer_map(layer), shape), 2)
    got = PowerIteration(n_first=1000)(layer_map(layer), shape, layer.weight)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=0.0)


def test_norm_of_a_convolution_is_not_that_of_its_reshaped_kernel() -> None:
    layer, shape = _convolution("plain")
    got = PowerIteration(n_first=400)(layer_map(layer), shape, layer.weight)
    assert got > 1.05 * torch.linalg.matrix_norm(layer.weight.flatten(1), 2)


def test_gradient_of_the_norm_is_the_outer_product_of_singular_vectors() -> None:
    layer = nn.Linear(6, 5).double()
    PowerIteration(n_first=500)(layer_map(layer), (6,), layer.weight).backward()
    u, _, v = torch.linalg.svd(layer.weight.detach())
    torch.testing.assert_close(layer.weight.grad, torch.outer(u[:, 0], v[0]), rtol=0, atol=1e-8)


def test_one_iteration_a_step_follows_weights_that_move() -> None:
    layer, iteration = nn.Linear(20, 20).double(), PowerIteration()
    for _ in range(100):
        got = iteration(layer_map(layer), (20,), layer.weight)
        with torch.no_grad():
            layer.weight += 1e-3 * torch.randn_like(layer.weight)
    expected = torch.linalg.matrix_norm(layer.weight, 2)
    torch.testing.assert_close(got, expected, rtol=0.02, atol=0.0)


def test_norm_of_a_zero_map_is_zero_and_stays_finite() -> None:
    layer = nn.Linear(3, 3, bias=False)
    nn.init.zeros_(layer.weight)
    iteration = PowerIteration()
    assert float(iteration(layer_map(layer), (3,), layer.weight).detach()) == 0.0
    assert iteration.vector.isfinite().all()


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 32)).double()


def _dense_jacobians(net: nn.Module, y: Tensor, operator: CompressedSensing | None) -> Tensor:
    jacobians = torch.func.vmap(torch.func.jacrev(net))(y)
    return jacobians if operator is None else jacobians @ operator.matrix


_OPERATORS = {"net": None, "composition": CompressedSensing(12, 32)}
either = pytest.mark.parametrize("operator", _OPERATORS.values(), ids=_OPERATORS)


@either
def test_spectral_product_is_the_product_of_dense_norms(operator: CompressedSensing | None) -> None:
    net, y = _net(), torch.randn(3, 12, dtype=torch.float64)
    first = net[0].weight if operator is None else net[0].weight @ operator.matrix
    expected = torch.linalg.matrix_norm(first, 2) * torch.linalg.matrix_norm(net[2].weight, 2)
    got = SpectralProduct(0.5, operator, n_iterations=300)(net, y)
    torch.testing.assert_close(got, 0.5 * expected, rtol=1e-6, atol=0.0)


@either
def test_spectral_product_bounds_the_jacobians(operator: CompressedSensing | None) -> None:
    net, y = _net(), torch.randn(50, 12, dtype=torch.float64)
    largest = torch.linalg.matrix_norm(_dense_jacobians(net, y, operator), 2).max()
    assert largest <= SpectralProduct(1.0, operator, n_iterations=300)(net, y)


@either
def test_spectral_norms_of_jacobians(operator: CompressedSensing | None) -> None:
    net, y = _net(), torch.randn(4, 12, dtype=torch.float64)
    expected = torch.linalg.matrix_norm(_dense_jacobians(net, y, operator), 2)
    got = Jacobian(1.0, operator=operator).spectral_norms(net, y, n_iterations=200)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=0.0)


@either
def test_jacobian_spectral_term_converges_while_the_net_stands_still(
    operator: CompressedSensing | None,
) -> None:
    net, y = _net(), torch.randn(1, 12, dtype=torch.float64)
    norms = torch.linalg.matrix_norm(_dense_jacobians(net, y, operator), 2).detach()
    term = Jacobian(0.1, "spectral", operator)
    values = [float(term(net, y).detach()) for _ in range(200)]
    assert values[-1] == pytest.approx(0.1 * float(norms.square().mean()), rel=1e-4)
    assert values[0] < values[-1]


@either
def test_jacobian_frobenius_term_is_right_on_average(operator: CompressedSensing | None) -> None:
    net, y = _net(), torch.randn(2, 12, dtype=torch.float64)
    expected = _dense_jacobians(net, y, operator).detach().square().sum((1, 2)).mean()
    term = Jacobian(1.0, "frobenius", operator)
    torch.manual_seed(0)
    mean = sum(float(term(net, y).detach()) for _ in range(1000)) / 1000
    assert mean == pytest.approx(float(expected), rel=0.05)


def test_model_aware_jacobian_of_a_nonlinear_operator_is_taken_at_the_estimate() -> None:
    class Cubic(CompressedSensing):
        is_linear = False

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + x**3)

    net, y, operator = _net(), torch.randn(2, 12, dtype=torch.float64), Cubic(12, 32)
    inner = operator.matrix * (1.0 + 3.0 * net(y)[:, None] ** 2)
    composed = _dense_jacobians(net, y, None) @ inner
    got = Jacobian(1.0, operator=operator).spectral_norms(net, y, n_iterations=200)
    torch.testing.assert_close(got, torch.linalg.matrix_norm(composed, 2), rtol=1e-4, atol=0.0)


def test_weight_decay_and_orthogonality_by_hand() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Conv2d(1, 1, 1))
    net[0].weight.data = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    net[1].weight.data = torch.full((1, 1, 1, 1), 3.0)
    y = torch.zeros(1, 2)
    assert float(WeightDecay(0.1)(net, y).detach()) == pytest.approx(0.1 * (4 + 1 + 9))
    # W^T W - I has entries 3, 0, 0, 0 and 8.
    assert float(Orthogonality(0.1)(net, y).detach()) == pytest.approx(0.1 * (3 + 8))


def test_convolutional_nets_take_every_term() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 3, padding=1))
    y = torch.randn(2, 1, 6, 6)
    terms = [WeightDecay(1.0), Orthogonality(1.0), SpectralProduct(1.0)]
    for term in [*terms, Jacobian(1.0, "frobenius"), Jacobian(1.0, "spectral")]:
        (gradient,) = torch.autograd.grad(term(net, y), net[0].weight)
        assert gradient.abs().sum() > 0


def test_an_operator_that_does_not_feed_the_net_is_named() -> None:
    with pytest.raises(PhysicsError, match=r"expected data \[12\].*got \[5\]"):
        SpectralProduct(1.0, CompressedSensing(5, 32))(_net(), torch.zeros(1, 12).double())


def test_a_net_without_layers_is_named() -> None:
    with pytest.raises(ValueError, match="no dense or convolutional layer"):
        WeightDecay(1.0)(nn.ReLU(), torch.zeros(1))


def _trainer(callback: Regularize, **options) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        callbacks=[callback],
        **options,
    )


def _model() -> Inverse:
    torch.manual_seed(0)
    return Inverse(MLP(12, 64, (8,)), partial(torch.optim.SGD, lr=0.1))


def _data(n_train: int = 4, batch_size: int | None = None) -> DigitsDataModule:
    operator = CompressedSensing(12, 64)
    return DigitsDataModule(operator, n_train=n_train, n_val=2, n_test=2, batch_size=batch_size)


def test_the_callback_adds_the_term_to_the_loss() -> None:
    trained, by_hand, data = _model(), _model(), _data()
    _trainer(Regularize(WeightDecay(0.01)), max_steps=1, enable_checkpointing=False).fit(
        trained, data
    )
    batch = next(iter(data.train_dataloader()))
    loss = by_hand.loss(batch) + WeightDecay(0.01)(by_hand.net, batch.data)
    gradients = torch.autograd.grad(loss, list(by_hand.parameters()))
    for got, start, gradient in zip(
        trained.parameters(), by_hand.parameters(), gradients, strict=True
    ):
        torch.testing.assert_close(got, start - 0.1 * gradient)
    assert "training_step" not in vars(trained), "the module is as it was"


def test_accumulated_batches_weigh_the_term_once() -> None:
    whole, accumulated = _model(), _model()
    options = {"enable_checkpointing": False, "max_steps": 1}
    _trainer(Regularize(WeightDecay(0.1)), **options).fit(whole, _data())
    trainer = _trainer(Regularize(WeightDecay(0.1)), accumulate_grad_batches=4, **options)
    trainer.fit(accumulated, _data(batch_size=1))
    for a, b in zip(whole.parameters(), accumulated.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:The dirpath has changed from")
def test_vectors_travel_in_checkpoints(tmp_path) -> None:
    first = Regularize(SpectralProduct(0.1))
    trainer = _trainer(first, max_steps=3, default_root_dir=tmp_path)
    trainer.fit(_model(), _data())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    second = Regularize(SpectralProduct(0.1))
    again = _trainer(second, max_steps=3, default_root_dir=tmp_path / "again")
    again.fit(_model(), _data(), ckpt_path=tmp_path / "last.ckpt")
    saved, loaded = first.term.state_dict(), second.term.state_dict()
    assert saved.keys() == loaded.keys()
    assert len(saved) == 2
    for name, vector in saved.items():
        assert torch.equal(vector, loaded[name])


def test_a_module_that_is_not_there_is_named() -> None:
    callback = Regularize(WeightDecay(1.0), module="backbone")
    with pytest.raises(UserError, match=r"no module 'backbone'.*\['net'\]"):
        _trainer(callback, max_steps=1, enable_checkpointing=False).fit(_model(), _data())


def test_ranks_hold_the_same_vectors_without_communication() -> None:
    zero, one = run_ranks(2, vectors_on)
    for a, b in zip(zero, one, strict=True):
        assert torch.equal(a, b)


def test_an_ensemble_trains_as_its_members_would_alone() -> None:
    operator = CompressedSensing(12, 64)
    data = [DigitsDataModule(operator, n_train=3, seed=seed).samples("train") for seed in (0, 1)]

    def objective(seed: int) -> Objective:
        torch.manual_seed(seed)
        made = Objective(MLP(12, 64, (8,)), SpectralProduct(0.1 * (seed + 1), operator))
        made(data[seed].truth, data[seed].data)
        return made

    ensemble = Ensemble([objective(0), objective(1)])
    truth, y = (torch.stack([getattr(d, name) for d in data]) for name in ("truth", "data"))
    ensemble.train(truth, y, n_steps=20)
    together = ensemble.estimate(y)
    for seed in (0, 1):
        alone = objective(seed)
        optimizer = torch.optim.Adam(alone.net.parameters(), lr=1e-3)
        for _ in range(20):
            optimizer.zero_grad()
            alone(data[seed].truth, data[seed].data).backward()
            optimizer.step()
        torch.testing.assert_close(
            together[seed], alone.net(data[seed].data).detach(), rtol=1e-3, atol=1e-4
        )


def test_a_nan_loss_of_a_member_is_named() -> None:
    data = torch.full((2, 3, 12), torch.nan)
    data[0] = 0.0
    with pytest.raises(NonFiniteError, match=r"members \[1\]"):
        Ensemble([Objective(MLP(12, 64)), Objective(MLP(12, 64))]).train(
            torch.zeros(2, 3, 64), data, n_steps=1
        )

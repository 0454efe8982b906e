"""The losses of model-constrained learning, their bad inputs, and the module's noise."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from zoo.data.deconvolution import DeconvolutionDataModule
from zoo.data.samples import Sample
from zoo.errors import PhysicsError, TrainingDataError
from zoo.loss.covariance import Unwhitening, WeightedSquaredNorm, Whitening, covariance_of
from zoo.loss.model_constrained import (
    RELATIVE_TO,
    data_misfit,
    randomization_covariance,
    randomization_std,
    randomized,
)
from zoo.model.model_constrained import ModelConstrained
from zoo.net.mlp import MLP
from zoo.net.quadratic import Quadratic
from zoo.physics.deconvolution import Deconvolution


def test_randomisation_has_the_stated_spread_and_leaves_zeros() -> None:
    y = torch.tensor([[2.0, 0.0, -5.0]], dtype=torch.float64).repeat(20_000, 1)
    noise = randomized(y, 0.1, torch.Generator().manual_seed(0)) - y
    torch.testing.assert_close(noise.std(0), 0.1 * y[0].abs(), rtol=0.02, atol=0.0)
    assert noise.mean(0).abs().max() < 0.02


@pytest.mark.parametrize("relative_to", RELATIVE_TO)
def test_covariance_of_randomised_data_is_its_expectation(relative_to: str) -> None:
    y = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mean, covariance = covariance_of(y, randomization_covariance(y, 0.3, relative_to))
    generator = torch.Generator().manual_seed(1)
    rows = randomized(y.repeat(100_000, 1), 0.3, generator, relative_to)
    torch.testing.assert_close(rows.mean(0), mean, rtol=0.0, atol=0.01)
    torch.testing.assert_close(torch.cov(rows.T, correction=0), covariance, rtol=0.0, atol=0.02)


def test_noise_relative_to_a_sample_is_the_same_for_all_its_entries() -> None:
    y = torch.tensor([[3.0, 0.0, -4.0, 0.0], [0.0, 0.0, 0.0, 2.0]])
    expected = 0.1 * torch.tensor([[2.5], [1.0]]).expand(2, 4)
    torch.testing.assert_close(randomization_std(y, 0.1, "sample"), expected)
    torch.testing.assert_close(randomization_std(y[:, None], 0.1, "sample")[:, 0], expected)


def test_an_unknown_measure_of_noise_is_named() -> None:
    with pytest.raises(ValueError, match=r"relative_to must be one of .* got 'batch'"):
        ModelConstrained(MLP(8, 8), Deconvolution(8), torch.optim.Adam, relative_to="batch")


def test_copies_reach_as_far_as_the_prior_predicts() -> None:
    """e^2 (G G^T + I / weight) for a linear G."""
    operator, weight = Deconvolution(8), 25.0
    options = {"weight": weight, "randomization": 0.5, "relative_to": "prior", "copies": 100_000}
    model = ModelConstrained(MLP(8, 8), operator, torch.optim.Adam, **options).double()
    model.on_fit_start()
    y = torch.randn(1, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows = model._randomized(Sample(torch.zeros(1), y, y), 0).data
    columns = operator(torch.eye(8, dtype=torch.float64)).T
    expected = 0.25 * (columns @ columns.T + torch.eye(8) / weight)
    torch.testing.assert_close(rows.mean(0), y[0], rtol=0.0, atol=0.01)
    torch.testing.assert_close(torch.cov(rows.T), expected, rtol=0.0, atol=0.01)
    torch.testing.assert_close(model._noise_covariance(y), expected)


def test_unwhitening_has_the_inverse_precision_as_its_covariance() -> None:
    root = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    precision, mean = root @ root.T + torch.eye(4), torch.arange(4.0)
    unwhitening = Unwhitening(4).double()
    unwhitening.fit(mean, precision)
    columns = unwhitening(torch.eye(4).double()) - mean
    torch.testing.assert_close(columns.T @ columns, precision.inverse())


def test_a_net_with_unwhitening_begins_at_the_hessian_of_its_loss() -> None:
    """In its output v the loss of TNet has the identity for a Hessian, G being linear."""
    operator, weight = Deconvolution(8), 1e4
    net = MLP(8, 8, unwhiten=True).double()
    model = ModelConstrained(net, operator, torch.optim.Adam, weight=weight).double()
    model.on_fit_start()
    y = torch.randn(1, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def loss(v: Tensor) -> Tensor:
        u = net.unwhitening(v[None])
        return 0.5 * (u.square().sum() + weight * (y - operator(u)).square().sum())

    hessian = torch.autograd.functional.hessian(loss, torch.randn(8, dtype=torch.float64))
    torch.testing.assert_close(hessian, torch.eye(8).double(), rtol=0.0, atol=1e-8)
    plain = MLP(8, 8, unwhiten=True).double()
    ModelConstrained(plain, operator, torch.optim.Adam, kind="naive").on_fit_start()
    torch.testing.assert_close(plain.unwhitening.factor, torch.eye(8).double())


def test_an_affine_map_beside_the_layers_is_all_of_a_net_at_first() -> None:
    net, x = MLP(3, 2, (5,), "tanh", skip=True), torch.randn(4, 3)
    torch.testing.assert_close(net(x), net.skip(x), rtol=0.0, atol=0.0)
    net(x).sum().backward()
    assert net.layers[-1].weight.grad.abs().sum() > 0


def test_products_are_as_many_and_as_large_as_a_quadratic_needs() -> None:
    """Any quadratic is in the class, and together the products vary as much as their factors."""
    net, generator = Quadratic(4, 1).double(), torch.Generator().manual_seed(0)
    x = torch.randn(100_000, 4, dtype=torch.float64, generator=generator)
    assert not net(x).any()
    products = net.products(x)
    assert products.shape == (100_000, 10)
    torch.testing.assert_close(products.mean(0), torch.zeros(10).double(), rtol=0.0, atol=0.02)
    assert products.var(0).sum().item() == pytest.approx(4.0, rel=0.02)
    wanted = (x @ torch.randn(4, dtype=torch.float64, generator=generator) - 0.5) ** 2
    columns = torch.cat([torch.ones(len(x), 1), x, products], 1)
    fitted = columns @ torch.linalg.lstsq(columns, wanted[:, None]).solution
    torch.testing.assert_close(fitted[:, 0], wanted)


def test_whitening_makes_the_covariance_the_identity() -> None:
    y = torch.randn(50, 4) @ torch.randn(4, 4)
    whitening = Whitening(4)
    whitening.fit(y)
    torch.testing.assert_close(
        torch.cov(whitening(y).T, correction=0), torch.eye(4), rtol=0, atol=1e-4
    )


def test_whitening_of_one_sample_without_noise_is_a_named_error() -> None:
    with pytest.raises(TrainingDataError, match="randomise the data"):
        Whitening(4).fit(torch.randn(1, 4))


def test_weighted_norm() -> None:
    u, covariance = torch.randn(5, 3).double(), torch.diag(torch.tensor([1.0, 4.0, 9.0])).double()
    expected = (u**2 / covariance.diagonal()).sum(1)
    torch.testing.assert_close(WeightedSquaredNorm(covariance)(u), expected)
    torch.testing.assert_close(WeightedSquaredNorm()(u), u.square().sum(1))


def test_data_of_another_shape_than_the_operators_are_named() -> None:
    with pytest.raises(TrainingDataError, match=r"Expected data \[2, 8\].*got \[2, 9\]"):
        data_misfit(torch.zeros(2, 8), torch.zeros(2, 9), Deconvolution(8), WeightedSquaredNorm())


def test_estimates_of_another_shape_than_the_operators_are_named() -> None:
    with pytest.raises(PhysicsError, match="u does not fit the operator"):
        data_misfit(torch.zeros(2, 9), torch.zeros(2, 8), Deconvolution(8), WeightedSquaredNorm())


class _Detached(nn.Module):
    def forward(self, u: Tensor) -> Tensor:
        return torch.from_numpy(u.detach().numpy().cumsum(1))


def test_an_operator_that_is_not_differentiable_is_named() -> None:
    estimate = torch.zeros(2, 8, requires_grad=True)
    with pytest.raises(PhysicsError, match="_Detached is not differentiable"):
        data_misfit(estimate, torch.zeros(2, 8), _Detached(), WeightedSquaredNorm())


class _Root(nn.Module):
    def forward(self, u: Tensor) -> Tensor:
        return u.sqrt()


def test_a_loss_that_is_no_number_is_infinite_for_the_line_search() -> None:
    model = ModelConstrained(MLP(8, 8), _Root(), torch.optim.Adam)
    model.log = lambda *arguments, **options: None
    for parameter in model.net.parameters():
        nn.init.constant_(parameter, -1.0)
    batch = Sample(torch.zeros(1), torch.ones(1, 8), torch.ones(1, 8))
    assert model.loss(batch).isnan()
    assert model.training_step(batch, 0).item() == torch.inf


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(ValueError, match="kind must be one of"):
        ModelConstrained(MLP(8, 8), Deconvolution(8), torch.optim.Adam, kind="dnn")


def test_zero_samples_are_named() -> None:
    data = DeconvolutionDataModule(Deconvolution(8), n_train=0)
    with pytest.raises(TrainingDataError, match=r"Next, set data\.n_train=1"):
        data.samples("train")


def test_noise_is_that_of_seed_epoch_batch_and_rank() -> None:
    def drawn(seed: int, batch_idx: int) -> Tensor:
        model = ModelConstrained(
            MLP(8, 8), Deconvolution(8), torch.optim.Adam, randomization=0.1, noise_seed=seed
        )
        ones = torch.ones(1, 8)
        return model._randomized(Sample(torch.zeros(1), ones, ones), batch_idx).data

    torch.testing.assert_close(drawn(0, 0), drawn(0, 0), rtol=0, atol=0)
    assert not torch.equal(drawn(0, 0), drawn(0, 1))
    assert not torch.equal(drawn(0, 0), drawn(1, 0))


def test_splits_depend_on_the_seed_alone() -> None:
    def data(seed: int, split: str, n_train: int = 3) -> Tensor:
        return (
            DeconvolutionDataModule(Deconvolution(8), n_train=n_train, seed=seed)
            .samples(split)
            .data
        )

    assert torch.equal(data(0, "test"), data(0, "test", n_train=7))
    assert not torch.equal(data(0, "test"), data(1, "test"))
    assert not torch.equal(data(0, "train"), data(0, "val")[:3])

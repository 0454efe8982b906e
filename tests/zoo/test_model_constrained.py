"""The losses of model-constrained learning, their bad inputs, and the module's noise."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from zoo.data.deconvolution import DeconvolutionDataModule
from zoo.data.samples import Sample
from zoo.errors import PhysicsError, TrainingDataError
from zoo.loss.covariance import WeightedSquaredNorm, Whitening, covariance_of
from zoo.loss.model_constrained import data_misfit, randomized
from zoo.model.model_constrained import ModelConstrained
from zoo.net.mlp import MLP
from zoo.physics.deconvolution import Deconvolution


def test_randomisation_has_the_stated_spread_and_leaves_zeros() -> None:
    y = torch.tensor([[2.0, 0.0, -5.0]], dtype=torch.float64).repeat(20_000, 1)
    noise = randomized(y, 0.1, torch.Generator().manual_seed(0)) - y
    torch.testing.assert_close(noise.std(0), 0.1 * y[0].abs(), rtol=0.02, atol=0.0)
    assert noise.mean(0).abs().max() < 0.02


def test_covariance_of_randomised_data_is_its_expectation() -> None:
    y = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mean, covariance = covariance_of(y, 0.3)
    rows = randomized(y.repeat(100_000, 1), 0.3, torch.Generator().manual_seed(1))
    torch.testing.assert_close(rows.mean(0), mean, rtol=0.0, atol=0.01)
    torch.testing.assert_close(torch.cov(rows.T, correction=0), covariance, rtol=0.0, atol=0.02)


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

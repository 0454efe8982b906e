"""Coefficients of a prior and the noisy data that an operator makes of them."""

from __future__ import annotations

import pytest
import torch

from zoo.data.coefficients import CoefficientsDataModule
from zoo.errors import TrainingDataError
from zoo.physics.heat import Heat


@pytest.fixture(scope="module")
def data() -> CoefficientsDataModule:
    operator = Heat(4, n_modes=3, n_sensors=5, deviation=0.3)
    return CoefficientsDataModule(operator, noise=0.02, n_train=7, n_val=2, n_test=2000)


def test_coefficients_are_standard_normal(data: CoefficientsDataModule) -> None:
    z = data.samples("test").truth
    torch.testing.assert_close(z.mean(0), torch.zeros(3), rtol=0.0, atol=0.08)
    torch.testing.assert_close(torch.cov(z.T), torch.eye(3), rtol=0.0, atol=0.1)


def test_noise_is_a_share_of_the_datas_root_mean_square(data: CoefficientsDataModule) -> None:
    test = data.samples("test")
    clean = data.operator(test.truth)
    noise = test.data - clean
    assert float(noise.std()) == pytest.approx(data.noise_std(), rel=0.03)
    assert float(noise.std() / clean.square().mean().sqrt()) == pytest.approx(0.02, rel=0.1)


def test_noise_is_the_same_for_any_number_of_samples(data: CoefficientsDataModule) -> None:
    one = CoefficientsDataModule(data.operator, noise=0.02, n_train=1, n_val=1, n_test=1)
    assert one.noise_std() == data.noise_std()


def test_a_deviation_scales_the_field() -> None:
    z = torch.randn(2, 3)
    fields = [Heat(4, n_modes=3, n_sensors=1, deviation=d).field(z) for d in (1.0, 0.1)]
    torch.testing.assert_close(0.1 * fields[0], fields[1])


def test_zero_samples_are_named(data: CoefficientsDataModule) -> None:
    empty = CoefficientsDataModule(data.operator, n_test=0)
    with pytest.raises(TrainingDataError, match=r"Next, set data\.n_test=1"):
        empty.samples("test")

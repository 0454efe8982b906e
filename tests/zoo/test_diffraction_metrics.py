"""Relative errors and Fourier ring correlation against values known in closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from zoo.metric.fourier_ring import fourier_ring_correlation, frc_cutoff
from zoo.metric.relative_error import norm_difference, relative_l2
from zoo.metric.sample_scores import SampleScores


def test_relative_l2() -> None:
    truth = torch.tensor([[[3.0, 4.0]], [[0.0, 2.0]]])
    image = torch.tensor([[[3.0, 1.0]], [[1.0, 2.0]]])
    assert relative_l2(image, truth).tolist() == pytest.approx([3 / 5, 1 / 2])


def test_half_precision_is_compared_in_single() -> None:
    truth = torch.full((1, 64, 64), 300.0, dtype=torch.float16)
    assert float(relative_l2(truth * 0.5, truth)) == pytest.approx(0.5)


def test_norm_difference_is_blind_to_a_permutation() -> None:
    torch.manual_seed(0)
    truth = torch.rand(1, 1, 16, 16)
    permuted = truth.flatten()[torch.randperm(256)].view_as(truth)
    assert float(norm_difference(permuted, truth)) == pytest.approx(0.0, abs=1e-6)
    assert float(relative_l2(permuted, truth)) > 0.5


def _slow_ring_correlation(image: np.ndarray, truth: np.ndarray, ring: int) -> float:
    n = min(image.shape)
    f, g = np.fft.fft2(image), np.fft.fft2(truth)
    cross, f_power, g_power = 0.0, 0.0, 0.0
    for row in range(image.shape[0]):
        for col in range(image.shape[1]):
            k = np.hypot(np.fft.fftfreq(image.shape[0])[row], np.fft.fftfreq(image.shape[1])[col])
            if np.round(k * n) == ring:
                cross += (f[row, col] * np.conj(g[row, col])).real
                f_power += abs(f[row, col]) ** 2
                g_power += abs(g[row, col]) ** 2
    return cross / np.sqrt(f_power * g_power)


@pytest.mark.parametrize("shape", [(16, 16), (12, 17)])
def test_rings_equal_the_slow_ones(shape: tuple[int, int]) -> None:
    generator = np.random.default_rng(0)
    image, truth = generator.normal(size=(2, *shape))
    ours = fourier_ring_correlation(torch.tensor(image[None]), torch.tensor(truth[None]))[0]
    slow = [_slow_ring_correlation(image, truth, ring + 1) for ring in range(min(shape) // 2)]
    np.testing.assert_allclose(ours.numpy(), slow, atol=1e-6)


def test_correlation_of_equal_scaled_and_negated_images() -> None:
    torch.manual_seed(0)
    image = torch.randn(1, 16, 16)
    torch.testing.assert_close(fourier_ring_correlation(2 * image + 5, image), torch.ones(1, 8))
    torch.testing.assert_close(fourier_ring_correlation(-image, image), -torch.ones(1, 8))


def test_cutoff_of_a_low_pass() -> None:
    torch.manual_seed(0)
    truth = torch.randn(1, 64, 64, dtype=torch.float64)
    k = torch.fft.fftfreq(64)
    low = (k[:, None].square() + k.square()).sqrt() <= 10.4 / 64
    noise = torch.randn(1, 64, 64, dtype=torch.float64)
    spectrum = torch.where(low, torch.fft.fft2(truth), torch.fft.fft2(noise))
    correlation = fourier_ring_correlation(torch.fft.ifft2(spectrum).real, truth)
    # Agreed up to ring 10 of 32, noise from ring 11 on.
    assert 10 / 32 <= float(frc_cutoff(correlation)) <= 11 / 32


@pytest.mark.parametrize(
    ("correlation", "cutoff"),
    [
        ([1.0, 1.0, 1.0, 1.0], 1.0),
        ([0.4, 1.0, 1.0, 1.0], 0.0),
        ([1.0, 0.0, 1.0, 1.0], 1.5 / 4),
        ([1.0, 0.9, 0.9, 0.4], 3.8 / 4),
    ],
)
def test_cutoff_is_interpolated(correlation: list[float], cutoff: float) -> None:
    assert float(frc_cutoff(torch.tensor([correlation]))) == pytest.approx(cutoff)


def test_a_repeated_sample_counts_once() -> None:
    scores = SampleScores(3, 1)
    scores.update(torch.tensor([0, 1]), torch.tensor([[1.0], [2.0]]))
    scores.update(torch.tensor([1]), torch.tensor([[4.0]]))
    table = scores.compute()
    assert table[:2, 0].tolist() == [1.0, 3.0]
    assert table[2].isnan().all()

"""The metric convention against a slow NumPy one, and exact means over ranks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DistributedSampler

from zoo.metric.convention import MetricConvention, luma
from zoo.metric.picture_scores import PictureScores, summarize

_BORDER_PX = 2


def _images(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    truth = torch.rand(1, 3, 24, 28, generator=generator)
    # Leaves [0, 1], so that clamping matters.
    return truth + 0.1 * torch.randn(truth.shape, generator=generator), truth


def _compared(image: torch.Tensor, channel: str) -> np.ndarray:
    pixels = np.clip(image[0].double().numpy(), 0.0, 1.0)
    if channel == "y":
        red, green, blue = pixels
        pixels = ((65.481 * red + 128.553 * green + 24.966 * blue + 16.0) / 255.0)[None]
    return pixels[:, _BORDER_PX:-_BORDER_PX, _BORDER_PX:-_BORDER_PX]


def _slow_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """Wang et al. 2004, equation 13, window by window; windows beyond the edge are mirrored."""
    offsets = np.arange(-5, 6)
    window = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(window, window) / window.sum() ** 2
    values = []
    for channel_x, channel_y in zip(x, y, strict=True):
        padded_x, padded_y = (np.pad(c, 5, mode="reflect") for c in (channel_x, channel_y))
        for row in range(channel_x.shape[0]):
            for col in range(channel_x.shape[1]):
                a = padded_x[row : row + 11, col : col + 11]
                b = padded_y[row : row + 11, col : col + 11]
                values.append(_ssim_of_window(a, b, window))
    return float(np.mean(values))


def _ssim_of_window(a: np.ndarray, b: np.ndarray, window: np.ndarray) -> float:
    mean_a, mean_b = (window * a).sum(), (window * b).sum()
    var_a, var_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
    covariance = (window * (a - mean_a) * (b - mean_b)).sum()
    c1, c2 = 0.01**2, 0.03**2
    numerator = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return numerator / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))


@pytest.mark.parametrize("channel", ["y", "rgb"])
def test_convention_equals_the_slow_one(channel: str) -> None:
    image, truth = _images()
    x, y = _compared(image, channel), _compared(truth, channel)
    psnr, ssim = MetricConvention(_BORDER_PX, channel).psnr_and_ssim(image, truth).tolist()
    assert psnr == pytest.approx(10 * np.log10(1.0 / np.mean((x - y) ** 2)), abs=1e-4)
    assert ssim == pytest.approx(_slow_ssim(x, y), abs=1e-4)


def test_luma_spans_the_studio_swing() -> None:
    ends = luma(torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 3, 1, 1))
    torch.testing.assert_close(255.0 * ends.flatten(), torch.tensor([16.0, 235.0]))


def test_border_is_left_out() -> None:
    _, truth = _images()
    spoiled = truth.clone()
    spoiled[..., :_BORDER_PX, :] = 0.0
    psnr, ssim = MetricConvention(_BORDER_PX).psnr_and_ssim(spoiled, truth).tolist()
    assert psnr == float("inf")
    assert ssim == pytest.approx(1.0)


def test_unknown_channel_is_refused() -> None:
    with pytest.raises(ValueError, match="channel must be 'y' or 'rgb', got 'cbcr'"):
        MetricConvention(_BORDER_PX, "cbcr")


def _score(indices: list[int], n_pictures: int) -> PictureScores:
    scores = PictureScores(n_pictures, MetricConvention(_BORDER_PX))
    for index in indices:
        image, truth = _images(index)
        scores.update(index, image, truth.roll(1, dims=-1), truth)
    return scores


def test_pictures_repeated_for_the_ranks_count_once() -> None:
    n_pictures = 3
    shares = [list(DistributedSampler(range(n_pictures), 2, rank)) for rank in (0, 1)]
    ranks = [_score(share, n_pictures) for share in shares]
    assert sum(map(len, shares)) == 4
    # What torchmetrics does with states of dist_reduce_fx="sum" at the end of an epoch.
    merged = PictureScores(n_pictures, MetricConvention(_BORDER_PX))
    merged.total = sum(rank.total for rank in ranks)
    merged.count = sum(rank.count for rank in ranks)
    merged._update_count = 1
    torch.testing.assert_close(merged.compute(), _score([0, 1, 2], n_pictures).compute())


def test_summary_is_the_mean_over_pictures_seen() -> None:
    scores = torch.tensor([[30.0, 0.9, 28.0, 0.8], [34.0, 0.7, 33.0, 0.6], [torch.nan] * 4])
    summary = {name: pytest.approx(float(mean)) for name, mean in summarize(scores).items()}
    assert summary == {
        "psnr": 32.0,
        "ssim": 0.8,
        "psnr_bicubic": 30.5,
        "ssim_bicubic": 0.7,
        "psnr_gain": 1.5,
    }

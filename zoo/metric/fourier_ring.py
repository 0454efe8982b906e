"""Fourier ring correlation: up to which spatial frequency two images agree."""

from __future__ import annotations

import torch
from torch import Tensor


def fourier_ring_correlation(image: Tensor, truth: Tensor) -> Tensor:
    """[N, H, W] twice -> [N, n_rings] in [-1, 1], from low to high frequency.

    FRC(r) = Re sum F G* / sqrt(sum |F|^2 sum |G|^2), sums over the Fourier pixels of ring r:
    Saxton and Baumeister 1982 (doi 10.1111/j.1365-2818.1982.tb00405.x), van Heel 1987
    (doi 10.1016/0304-3991(87)90010-1). Ring r (from 1) holds the frequencies that round to r / n
    cycles a pixel, n the smaller side; the last ring is the largest with r <= n / 2, Nyquist's. The
    mean (r = 0) is left out, since nearly all images agree on it. A ring that is empty of power in
    either image is 0.
    """
    ring = _ring_index(image.shape[-2], image.shape[-1]).to(image.device)
    f, g = (torch.fft.fft2(x.double()) for x in (image, truth))
    cross = _ring_sums((f * g.conj()).real, ring)
    power = _ring_sums(f.abs().square(), ring) * _ring_sums(g.abs().square(), ring)
    return torch.where(power > 0, cross / power.clamp(min=1e-300).sqrt(), 0.0).float()


def frc_cutoff(correlation: Tensor, threshold: float = 0.5) -> Tensor:
    """[N, n_rings] -> [N]: where it first falls below `threshold`, as a share of Nyquist.

    Between rings it is interpolated. 1 if it never falls below; 0 if the first ring is below it
    already. The threshold of a half is the convention for an image against a known truth (van Heel
    and Schatz 2005, doi 10.1016/j.jsb.2005.05.009, discuss others).
    """
    n_rings = correlation.shape[1]
    below = correlation < threshold
    first = torch.where(below.any(dim=1), below.int().argmax(dim=1), n_rings)
    index = first.clamp(1, n_rings - 1)[:, None]
    before = correlation.gather(1, index - 1)[:, 0]
    after = correlation.gather(1, index)[:, 0]
    share = ((before - threshold) / (before - after)).clamp(0.0, 1.0)
    crossing = (index[:, 0] + share) / n_rings
    crossing = torch.where(first == n_rings, torch.ones_like(crossing), crossing)
    return torch.where(first == 0, torch.zeros_like(crossing), crossing)


def _ring_index(height_px: int, width_px: int) -> Tensor:
    """[H, W] of each Fourier pixel's ring; 0 for the mean, n / 2 + 1 for all beyond Nyquist."""
    n = min(height_px, width_px)
    rows, cols = (torch.fft.fftfreq(side_px) * n for side_px in (height_px, width_px))
    radius = (rows[:, None].square() + cols[None, :].square()).sqrt()
    return radius.round().long().clamp(max=n // 2 + 1)


def _ring_sums(values: Tensor, ring: Tensor) -> Tensor:
    """[N, H, W] -> [N, n_rings], without the mean and the corners beyond Nyquist."""
    n_rings = min(ring.shape) // 2
    sums = values.new_zeros(len(values), n_rings + 2)
    sums.index_add_(1, ring.flatten(), values.flatten(1))
    return sums[:, 1 : n_rings + 1]

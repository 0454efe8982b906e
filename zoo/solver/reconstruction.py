"""What a ptychographic reconstruction is, whoever made it, and how well it explains the counts."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from zoo.data.ptychography_file import Scan
from zoo.physics.noise import amplitude_residual, poisson_deviance
from zoo.physics.ptychography import add_patches, diffract, intensity, shifted, split_positions

_POSITIONS_AT_ONCE = 64


class Reconstruction(NamedTuple):
    """image: [H, W] complex64, the object's transmission; probe: [d, d] complex64."""

    image: Tensor
    probe: Tensor


class DataResidual(NamedTuple):
    """How far a reconstruction is from the counts.

    Attributes:
        amplitude: sum |sqrt(counts) - sqrt(expected)| / sum sqrt(counts).
        deviance: mean Poisson deviance a pixel; about 1 where only noise is left and counts are
            more than a few.
    """

    amplitude: float
    deviance: float


def flat_image(scan: Scan) -> Tensor:
    """An object of ones, where every solver starts; [H, W] complex64."""
    return torch.ones(scan.object_shape, dtype=torch.complex64, device=scan.counts.device)


@torch.no_grad()
def data_residual(scan: Scan, found: Reconstruction) -> DataResidual:
    """Compare the counts of all patterns with what the reconstruction predicts."""
    corners, fractions = split_positions(scan.positions_px)
    expected = torch.cat(
        [
            diffract(found.image[None], found.probe, corner, fraction)[0]
            for corner, fraction in zip(
                corners.split(_POSITIONS_AT_ONCE), fractions.split(_POSITIONS_AT_ONCE), strict=True
            )
        ]
    )
    return DataResidual(
        float(amplitude_residual(scan.counts, expected)),
        float(poisson_deviance(scan.counts, expected).mean()),
    )


@torch.no_grad()
def illumination(scan: Scan, probe: Tensor) -> Tensor:
    """Intensity that fell on each pixel of the object over the whole scan, [H, W] float32."""
    corners, fractions = split_positions(scan.positions_px)
    return add_patches(intensity(shifted(probe, fractions))[None], corners, scan.object_shape)[0]

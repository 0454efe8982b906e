"""The extended ptychographical iterative engine.

A. M. Maiden and J. M. Rodenburg, Ultramicroscopy 109, 1256 (2009), section 2: one pattern after the
other, in random order, replaces the modulus of its far field by the measured one and steps object
and probe towards the exit wave that follows.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from zoo.data.ptychography_file import Scan
from zoo.physics.ptychography import far_field, intensity, near_field, shifted, split_positions
from zoo.solver.reconstruction import Reconstruction, flat_image


@torch.no_grad()
def epie(
    scan: Scan,
    epochs: Iterable[int],
    object_step: float = 1.0,
    probe_step: float = 1.0,
    first_probe_epoch: int = 2,
    seed: int = 0,
) -> Reconstruction:
    """Reconstruct object and probe.

    Args:
        epochs: 0, 1, ...: a range, or one with a progress bar around it.
        object_step, probe_step: alpha and beta of the paper.
        first_probe_epoch: the probe stays as it is before; an object of ones would spoil it.
    """
    corners, fractions = split_positions(scan.positions_px)
    modulus = scan.counts.sqrt()
    image, probe = flat_image(scan), scan.probe.clone()
    generator = torch.Generator().manual_seed(seed)
    for epoch in epochs:
        step = probe_step if epoch >= first_probe_epoch else 0.0
        for p in torch.randperm(len(modulus), generator=generator).tolist():
            patch = _patch(image, corners[p], len(probe))
            _update(patch, probe, fractions[p], modulus[p], object_step, step)
    return Reconstruction(image, probe)


def _patch(image: Tensor, corner: Tensor, side_px: int) -> Tensor:
    """A view into `image`."""
    row, col = corner.tolist()
    return image[row : row + side_px, col : col + side_px]


def _update(
    patch: Tensor,
    probe: Tensor,
    fraction: Tensor,
    modulus: Tensor,
    object_step: float,
    probe_step: float,
) -> None:
    """Step patch and probe, in place, towards the measured modulus."""
    wave = shifted(probe, fraction)
    far = far_field(wave * patch)
    change = near_field(torch.polar(modulus, far.angle()) - far)
    # Both from the values before: the paper's two equations are simultaneous.
    probe_change = patch.conj() * change / intensity(patch).max()
    patch += object_step * wave.conj() * change / intensity(wave).max()
    if probe_step:
        probe += probe_step * shifted(probe_change, -fraction)

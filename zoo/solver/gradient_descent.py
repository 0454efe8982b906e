"""Maximum likelihood by stochastic gradient descent, through the same physics as the network's.

The Poisson deviance of a few patterns at a time is differentiated by autograd with respect to
object and probe, and Adam takes the step: refinement by maximum likelihood as in P. Thibault and
M. Guizar-Sicairos, New J. Phys. 14, 063004 (2012), with another optimizer.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from zoo.data.ptychography_file import Scan
from zoo.physics.noise import poisson_deviance
from zoo.physics.ptychography import diffract, split_positions
from zoo.solver.reconstruction import Reconstruction, flat_image


def gradient_descent(
    scan: Scan,
    epochs: Iterable[int],
    object_lr: float = 0.02,
    probe_lr: float = 0.02,
    patterns_per_step: int = 32,
    first_probe_epoch: int = 2,
    seed: int = 0,
) -> Reconstruction:
    """Reconstruct object and probe.

    Args:
        epochs: 0, 1, ...: a range, or one with a progress bar around it.
        object_lr: Adam's rate for the transmission, which is about 1.
        probe_lr: Adam's rate for the probe, as a share of its root mean square.
    """
    corners, fractions = split_positions(scan.positions_px)
    image = flat_image(scan).requires_grad_()
    scale = scan.probe.abs().square().mean().sqrt()
    probe = (scan.probe / scale).requires_grad_()
    optimizer = torch.optim.Adam([{"params": [image], "lr": object_lr}, {"params": [probe]}])
    generator = torch.Generator().manual_seed(seed)
    for epoch in epochs:
        optimizer.param_groups[1]["lr"] = probe_lr if epoch >= first_probe_epoch else 0.0
        order = torch.randperm(len(corners), generator=generator)
        for some in order.split(patterns_per_step):
            expected = diffract(image[None], scale * probe, corners[some], fractions[some])
            loss = poisson_deviance(scan.counts[some], expected[0]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return Reconstruction(image.detach(), scale * probe.detach())

"""Self-supervised ptychography: the physics is the teacher, no ground truth is needed.

The network proposes an object, the operator of `zoo.physics.ptychography` predicts the diffraction
patterns, and the Poisson likelihood of the counts is the loss. After PtychoPINN (O. Hoidn,
A. A. Mishra, A. Mehta, Sci. Rep. 13, 22789 (2023)); unlike it, a convolutional network sees no raw
patterns but what they say about the object, carried there by the adjoint of the physics and summed
where patches overlap, which is how learned gradient schemes work (J. Adler, O. Oktem, Inverse
Problems 33, 124007 (2017)).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from zoo.data.ptychography import Patterns
from zoo.data.ptychography_file import read_scan
from zoo.model.scored import scheduled
from zoo.physics.noise import amplitude_residual, poisson_deviance
from zoo.physics.ptychography import (
    add_patches,
    diffract,
    far_field,
    intensity,
    near_field,
    shifted,
    take_patches,
)
from zoo.solver.reconstruction import Reconstruction

# Channels that the network gets: the misfit's and the object's real and imaginary part, and light.
IN_CHANNELS = 5
# Share of the probe's peak intensity below which the misfit is damped instead of divided by it.
_DIM = 0.1


class Ptychography(L.LightningModule):
    """Learns to reconstruct the object of one scan, and the probe with it.

    Logs `train/deviance` a step, and on the whole scan `val/` and `test/`: `deviance` and
    `amplitude_residual`, as `zoo.solver.reconstruction.DataResidual` has them. After a validation
    or test `reconstruction` holds the object and the probe.

    Args:
        net: [N, 5, H, W] -> [N, 2, H, W], zero at the start; see `passes`.
        optimizer: parameters -> optimizer.
        scan_path: where the probe's first guess comes from.
        probe_lr: learning rate of the probe, as a share of its root mean square.
        n_passes: how often the network corrects its own proposal, seeing what still does not fit.
        scheduler: optimizer -> learning rate schedule, advanced every step; None keeps the rate.
    """

    def __init__(
        self,
        net: nn.Module,
        optimizer: Callable[[Iterable[Any]], Optimizer],
        scan_path: str,
        probe_lr: float,
        n_passes: int = 1,
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.n_passes = n_passes
        self.probe_lr = probe_lr
        self.reconstruction: Reconstruction | None = None
        probe = read_scan(Path(scan_path)).probe
        scale = probe.abs().square().mean().sqrt()
        self.register_buffer("probe_scale", scale)
        # Real and imaginary part: what reduces gradients need not know of complex numbers.
        self.probe_parts = nn.Parameter(torch.view_as_real(probe / scale).contiguous())
        self._optimizer = optimizer
        self._scheduler = scheduler

    @property
    def probe(self) -> Tensor:
        """[d, d] complex64, differentiable."""
        return self.probe_scale * torch.view_as_complex(self.probe_parts)

    def forward(self, batch: Patterns) -> Tensor:
        """The transmission that explains a batch of patterns, [N, H, W] complex64.

        Amplitude 2 sigmoid(u) and phase pi tanh(v): 1 and 0 where the network says nothing.
        """
        shape = tuple(batch.shape[0].tolist())
        said = batch.counts.new_zeros(len(batch.counts), 2, *shape)
        for _ in range(self.n_passes):
            said = said + self.net(self._seen(_transmission(said), batch))
        return _transmission(said)

    def training_step(self, batch: Patterns, batch_idx: int) -> Tensor:
        loss = poisson_deviance(batch.counts, self._expected(self(batch), batch)).mean()
        self.log("train/deviance", loss, prog_bar=True, batch_size=len(batch.counts))
        return loss

    def validation_step(self, batch: Patterns, batch_idx: int) -> None:
        self._score(batch, "val")

    def test_step(self, batch: Patterns, batch_idx: int) -> None:
        self._score(batch, "test")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        probe = {"params": [self.probe_parts], "lr": self.probe_lr}
        return scheduled(
            self._optimizer([{"params": list(self.net.parameters())}, probe]), self._scheduler
        )

    def _expected(self, image: Tensor, batch: Patterns) -> Tensor:
        return diffract(image, self.probe, batch.corners, batch.fractions)

    def _score(self, batch: Patterns, stage: str) -> None:
        """Every rank has the whole scan, so that all log the same numbers."""
        image = self(batch)
        expected = self._expected(image, batch)
        self.reconstruction = Reconstruction(image[0].cpu(), self.probe.detach().cpu())
        scores = {
            f"{stage}/deviance": poisson_deviance(batch.counts, expected).mean(),
            f"{stage}/amplitude_residual": amplitude_residual(batch.counts, expected),
        }
        self.log_dict(scores, batch_size=1, sync_dist=True)

    @torch.no_grad()
    def _seen(self, image: Tensor, batch: Patterns) -> Tensor:
        """What the network sees, [N, 5, H, W]: misfit and object, each in two parts, and light.

        The misfit is the Wirtinger gradient of sum (sqrt(counts) - |far field|)^2 by the object,
        over the light that fell on each pixel: it has the object's scale.
        """
        shape = (image.shape[-2], image.shape[-1])
        probes = shifted(self.probe, batch.fractions)
        far = far_field(probes * take_patches(image, batch.corners, probes.shape[-1]))
        change = near_field(torch.polar(batch.counts.sqrt(), far.angle()) - far)
        misfit = add_patches(probes.conj() * change, batch.corners, shape)
        light = add_patches(intensity(probes), batch.corners, shape)
        peak = intensity(self.probe).max()
        misfit = misfit / (light + _DIM * peak)
        return torch.stack(
            [misfit.real, misfit.imag, image.real - 1.0, image.imag, light / (light + peak)], dim=1
        )


def _transmission(said: Tensor) -> Tensor:
    """[N, 2, H, W] real -> [N, H, W] complex."""
    phase = math.pi * torch.tanh(said[:, 1])
    return 2.0 * torch.sigmoid(said[:, 0]) * torch.complex(phase.cos(), phase.sin())

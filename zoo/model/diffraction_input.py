"""From raw diffraction patterns to what a network is fed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Layout = Literal["scan_channels", "detector_channels"]
_LAYOUTS = ("scan_channels", "detector_channels")
_SCALINGS = ("sqrt", "log", "none")


class Standardisation(nn.Module):
    """(x - mean) / std of each channel; the statistics are buffers, so they go with the checkpoint.

    Until `set_statistics` is called it changes nothing.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("std", torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels, h, w]."""
        return (x - self.mean) / self.std

    def undo(self, x: Tensor) -> Tensor:
        return x * self.std + self.mean

    def set_statistics(self, moments: Tensor) -> None:
        """From the float64 [3, channels] of `moments_of`, summed over whatever was looked at.

        A channel that does not vary gets a std of 1.
        """
        count, total, squares = moments
        mean = total / count
        std = (squares / count - mean.square()).clamp(min=0.0).sqrt()
        # Rounding leaves a constant channel a variance of about 1e-16 of its square.
        std = torch.where(std > 1e-6 * mean.abs(), std, torch.ones_like(std))
        self.mean.copy_(mean.view(-1, 1, 1))
        self.std.copy_(std.view(-1, 1, 1))


def moments_of(x: Tensor) -> Tensor:
    """[N, channels, h, w] -> float64 [3, channels]: count, sum and sum of squares; they add up."""
    x = x.double()
    count = torch.full((x.shape[1],), x.numel() / x.shape[1], dtype=x.dtype, device=x.device)
    return torch.stack([count, x.sum(dim=(0, 2, 3)), x.square().sum(dim=(0, 2, 3))])


class DiffractionInput(nn.Module):
    """[N, scan_h * scan_w, det_h, det_w] intensities -> [N, channels, h, w], float32.

    In order: detector pixels are summed `bin_px` x `bin_px`; each pattern's minimum is subtracted;
    `scaling`; `layout`; each channel is standardised. Minimum and square root are those of the
    authors' code (Laanait et al. 2019; stemdl, `image_scaling`).

    Args:
        scan_shape, detector_shape: (h, w) of the grid of probes and of the detector.
        layout: "scan_channels" convolves over the diffraction plane, as the paper does;
            "detector_channels" transposes: each detector pixel is an image over the scan.
        bin_px: side of the square of detector pixels that are summed to one.
        scaling: "sqrt" | "log" (of 1 + x / mean) | "none".

    Raises:
        ValueError: an argument, or the shape of a batch, does not fit.
    """

    def __init__(
        self,
        scan_shape: Sequence[int],
        detector_shape: Sequence[int],
        layout: Layout = "scan_channels",
        bin_px: int = 1,
        scaling: Literal["sqrt", "log", "none"] = "sqrt",
    ) -> None:
        super().__init__()
        self.scan_shape, self.detector_shape = tuple(scan_shape), tuple(detector_shape)
        self.layout, self.bin_px, self.scaling = layout, bin_px, scaling
        _check(self)
        scan = self.scan_shape[0] * self.scan_shape[1]
        binned = (self.detector_shape[0] // bin_px, self.detector_shape[1] // bin_px)
        by_scan = layout == "scan_channels"
        self.channels = scan if by_scan else binned[0] * binned[1]
        self.plane_shape = binned if by_scan else self.scan_shape
        self.standardisation = Standardisation(self.channels)

    def forward(self, cbed: Tensor) -> Tensor:
        return self.standardisation(self.laid_out(cbed))

    def laid_out(self, cbed: Tensor) -> Tensor:
        """All but the standardisation."""
        expected = (self.scan_shape[0] * self.scan_shape[1], *self.detector_shape)
        if cbed.ndim != 4 or tuple(cbed.shape[1:]) != expected:
            raise ValueError(
                f"expected patterns of [N, {expected[0]}, {expected[1]}, {expected[2]}] (a scan of "
                f"{self.scan_shape} probes, a detector of {self.detector_shape} pixels), got "
                f"{list(cbed.shape)}; set model.input.scan_shape and model.input.detector_shape to "
                "those of the data"
            )
        patterns = self._scaled(self._binned(cbed.float()))
        if self.layout == "scan_channels":
            return patterns
        return patterns.flatten(2).transpose(1, 2).reshape(-1, self.channels, *self.scan_shape)

    def _binned(self, patterns: Tensor) -> Tensor:
        if self.bin_px == 1:
            return patterns
        return F.avg_pool2d(patterns, self.bin_px) * self.bin_px**2

    def _scaled(self, patterns: Tensor) -> Tensor:
        patterns = patterns - patterns.amin(dim=(2, 3), keepdim=True)
        if self.scaling == "sqrt":
            return patterns.sqrt()
        if self.scaling == "log":
            mean = patterns.mean(dim=(2, 3), keepdim=True)
            return torch.log1p(patterns / mean.clamp(min=torch.finfo(mean.dtype).tiny))
        return patterns


def _check(settings: DiffractionInput) -> None:
    if settings.layout not in _LAYOUTS:
        raise ValueError(f"layout must be one of {_LAYOUTS}, got {settings.layout!r}")
    if settings.scaling not in _SCALINGS:
        raise ValueError(f"scaling must be one of {_SCALINGS}, got {settings.scaling!r}")
    if any(side_px % settings.bin_px for side_px in settings.detector_shape):
        raise ValueError(
            f"expected a detector of multiples of bin_px={settings.bin_px}, got "
            f"{settings.detector_shape}; try bin_px=1"
        )

"""How images are compared. Numbers of different conventions differ by more than methods do."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import Tensor
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

# ITU-R BT.601 luma with the studio swing 16..235 of 255, as MATLAB's rgb2ycbcr and thus most of the
# literature on super-resolution computes it.
_LUMA_WEIGHTS = (65.481 / 255.0, 128.553 / 255.0, 24.966 / 255.0)
_LUMA_OFFSET = 16.0 / 255.0


def luma(image: Tensor) -> Tensor:
    """[N, 3, H, W] RGB in [0, 1] -> [N, 1, H, W] in [16/255, 235/255]."""
    weights = image.new_tensor(_LUMA_WEIGHTS).view(1, 3, 1, 1)
    return (image * weights).sum(dim=1, keepdim=True) + _LUMA_OFFSET


@dataclass(frozen=True, slots=True)
class MetricConvention:
    """PSNR and SSIM after clamping to [0, 1], on `channel`, without `border_px` at each edge.

    No rounding to 8 bits. PSNR (dB) is 10 log10(data_range^2 / mean squared error) over all
    channels together; SSIM is Wang et al. 2004 (doi 10.1109/TIP.2003.819861) with its Gaussian
    window of 11 pixels and sigma 1.5, averaged over all pixels (windows over the edge see mirrored
    pixels) and channels.

    Attributes:
        channel: "y", luma of BT.601 in the studio swing, or "rgb".
        border_px: high-resolution pixels left out at each edge; the field's habit is the scale.
        data_range: the peak of PSNR and SSIM.
    """

    border_px: int
    channel: Literal["y", "rgb"] = "y"
    data_range: float = 1.0

    def __post_init__(self) -> None:
        if self.channel not in ("y", "rgb"):
            raise ValueError(f"channel must be 'y' or 'rgb', got {self.channel!r}")

    def psnr_and_ssim(self, image: Tensor, truth: Tensor) -> Tensor:
        """[2]: PSNR in dB and SSIM of one image against its truth, both [1, 3, H, W] RGB."""
        image, truth = self._compared(image), self._compared(truth)
        psnr = peak_signal_noise_ratio(image, truth, data_range=self.data_range)
        ssim = structural_similarity_index_measure(image, truth, data_range=self.data_range)
        return torch.stack([psnr, ssim])

    def as_dict(self) -> dict[str, object]:
        """For the results file."""
        return asdict(self) | {"clamped_to": [0.0, 1.0], "rounded_to_8_bit": False}

    def _compared(self, image: Tensor) -> Tensor:
        image = image.clamp(0.0, 1.0)
        image = luma(image) if self.channel == "y" else image
        height_px, width_px = image.shape[-2:]
        edge = self.border_px
        return image[..., edge : height_px - edge, edge : width_px - edge]

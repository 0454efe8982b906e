"""A plain U-net for images: the one that is commonly trained on pairs, for comparison."""

from __future__ import annotations

from torch import Tensor, nn

from zoo.net.unet import UNet


class ResidualUNet(nn.Module):
    """x [N, H, W] -> x + UNet(x), the identity at the start of training.

    Args:
        channels, n_levels: of `zoo.net.unet.UNet`.
    """

    def __init__(self, channels: int = 8, n_levels: int = 3) -> None:
        super().__init__()
        self.unet = UNet(1, 1, channels, n_levels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.unet(x[:, None])[:, 0]

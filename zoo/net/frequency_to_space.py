"""A fully connected bridge between the plane of diffraction and the plane of the object.

A diffraction pattern and the object behind it are Fourier pairs: each pixel of one depends on all
pixels of the other, which a stack of small convolutions cannot express. The authors of Laanait et
al. 2019 (arXiv 1909.11150) therefore put this between encoder and decoder in their later code
(stemdl, `network.py`, `_freq2space`; MIT), after which it is written.
"""

from __future__ import annotations

from math import isqrt

from torch import Tensor, nn

_LARGEST_SIDE_PX = 64


class FrequencyToSpace(nn.Module):
    """[N, channels, side_px, side_px] -> the same shape, every output pixel out of all inputs.

    All channels are gathered into one, coarse; two fully connected layers mix its pixels;
    transposed convolutions refine it to the full side; a last convolution restores the channels.

    Args:
        width: outputs of the first fully connected layer; the gathered image has about as many
            pixels.
        dropout: rate behind each normalization, of whole channels.
    """

    def __init__(self, channels: int, side_px: int, width: int = 512, dropout: float = 0.5) -> None:
        super().__init__()
        stride = max(1, side_px // isqrt(width))
        gathered_px = -(-side_px // stride)
        self.coarse_px, n_doublings = side_px, 0
        while self.coarse_px > _LARGEST_SIDE_PX and self.coarse_px % 2 == 0:
            self.coarse_px, n_doublings = self.coarse_px // 2, n_doublings + 1
        self.gather = nn.Conv2d(channels, 1, 3, stride=stride, padding=1, bias=False)
        self.mix = nn.Sequential(
            nn.Flatten(),
            nn.Linear(gathered_px**2, width),
            nn.ReLU(),
            nn.Linear(width, self.coarse_px**2),
            nn.ReLU(),
        )
        refine: list[nn.Module] = []
        for index in range(n_doublings):
            refine += [
                nn.ConvTranspose2d(
                    16 if index else 1, 8, 3, stride=2, padding=1, output_padding=1, bias=False
                ),
                _Normalized(8, 16, dropout),
            ]
        self.refine = nn.Sequential(*refine)
        self.restore = _Normalized(16 if n_doublings else 1, channels, dropout)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.mix(self.gather(x))
        return self.restore(self.refine(mixed.view(-1, 1, self.coarse_px, self.coarse_px)))


class _Normalized(nn.Sequential):
    def __init__(self, in_channels: int, out_channels: int, dropout: float) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
            nn.Dropout2d(dropout),
        )

"""One-dimensional blur with a Gaussian kernel: the linear problem of the model-constrained nets.

Nguyen and Bui-Thanh 2021, arXiv 2105.12033, use such a deconvolution as their first example.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from zoo.physics.operator import Space


def gaussian_kernel_matrix(n: int, width: float) -> Tensor:
    """[n, n] float64: the integral over [0, 1] against a Gaussian, by the midpoint rule.

    Entry (i, j) is exp(-(t_i - t_j)^2 / (2 width^2)) / (n width sqrt(2 pi)) with t the midpoints of
    n equal cells; what lies outside of [0, 1] counts as zero.
    """
    points = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    distances = points[:, None] - points
    return torch.exp(-0.5 * (distances / width) ** 2) / (n * width * math.sqrt(2.0 * math.pi))


class Deconvolution(nn.Module):
    """u [N, n] -> G u [N, n] with `gaussian_kernel_matrix(n, width)`; in the precision of u.

    Args:
        n: samples of the signal, and of the data.
        width: standard deviation of the kernel, as a share of the interval.

    Raises:
        ValueError: `width` is not positive.
    """

    is_linear = True

    def __init__(self, n: int = 64, width: float = 0.05) -> None:
        super().__init__()
        if width <= 0:
            raise ValueError(f"width must be positive, got {width}; try width=0.05")
        self.domain = self.codomain = Space((n,))
        self.register_buffer("matrix", gaussian_kernel_matrix(n, width), persistent=False)

    def forward(self, u: Tensor) -> Tensor:
        self.domain.require("u", u)
        return u @ self.matrix.to(u.dtype).T

    def adjoint(self, y: Tensor) -> Tensor:
        self.codomain.require("y", y)
        return y @ self.matrix.to(y.dtype)

"""A penalty on layers that are not orthogonal."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.loss.power_iteration import weighted_layers


class Orthogonality(nn.Module):
    """weight * sum over layers of ||W_l^T W_l - I||_1, the sum of absolute entries.

    The kernel of a convolution counts as a matrix [out, in * kernel]. That is how a public
    implementation of the regularisation of arXiv 1901.11352 does it, not the paper's own code.
    """

    weight: Tensor

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.register_buffer("weight", torch.tensor(float(weight)), persistent=False)

    def bind(self, net: nn.Module) -> None:
        """Nothing is kept between calls."""

    def forward(self, net: nn.Module, x: Tensor) -> Tensor:
        return self.weight * sum(_defect(layer) for layer in weighted_layers(net).values())


def _defect(layer: nn.Module) -> Tensor:
    matrix = layer.weight.flatten(1)
    identity = torch.eye(matrix.shape[1], dtype=matrix.dtype, device=matrix.device)
    return (matrix.T @ matrix - identity).abs().sum()

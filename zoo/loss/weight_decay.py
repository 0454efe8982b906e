"""Weight decay as a term of the loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.loss.power_iteration import weighted_layers


class WeightDecay(nn.Module):
    """weight * sum over layers of ||W_l||_F^2; biases are left alone.

    The baseline of Amjad, Lyu and Rodrigues, arXiv 1901.11352. As every term of this package:
    called with a network and a batch of its inputs, it returns a scalar, weight included.
    """

    weight: Tensor

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.register_buffer("weight", torch.tensor(float(weight)), persistent=False)

    def bind(self, net: nn.Module) -> None:
        """Nothing is kept between calls."""

    def forward(self, net: nn.Module, x: Tensor) -> Tensor:
        layers = weighted_layers(net).values()
        return self.weight * sum(layer.weight.square().sum() for layer in layers)

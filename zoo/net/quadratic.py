"""Polynomials of degree two."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.loss.covariance import Unwhitening, Whitening


class Quadratic(nn.Module):
    """[N, n_in] -> [N, n_out]: an affine map of x and one of its products x_i x_j, i <= j.

    The next term after the affine one of a smooth inverse, for data far from those of the training
    set: there a net of tanh stays where its units saturate. Begins at zero.

    [Note: scale of the products] Each has mean zero and variance one where x is standard normal,
    and all of them are multiplied by sqrt(2 / (n_in + 1)): together they then vary as much as all
    of x does. There are far more of them, and the first long step of an optimizer would otherwise
    be theirs.

    Args:
        whiten: a `Whitening` of the input comes first; whoever trains the net fits it.
        unwhiten: an `Unwhitening` of the output comes last; likewise.
    """

    first: Tensor
    second: Tensor

    def __init__(self, n_in: int, n_out: int, whiten: bool = False, unwhiten: bool = False) -> None:
        super().__init__()
        self.whitening = Whitening(n_in) if whiten else None
        self.unwhitening = Unwhitening(n_out) if unwhiten else None
        first, second = torch.triu_indices(n_in, n_in)
        self.register_buffer("first", first, persistent=False)
        self.register_buffer("second", second, persistent=False)
        self.scale = (2.0 / (n_in + 1)) ** 0.5
        self.linear = nn.Linear(n_in, n_out)
        self.quadratic = nn.Linear(len(first), n_out, bias=False)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.whitening is None else self.whitening(x)
        out = self.linear(x) + self.quadratic(self.products(x))
        return out if self.unwhitening is None else self.unwhitening(out)

    def products(self, x: Tensor) -> Tensor:
        """[N, n_in (n_in + 1) / 2]; see [Note: scale of the products]."""
        square = (self.first == self.second).to(x)
        return self.scale * (x[:, self.first] * x[:, self.second] - square) / (1.0 + square).sqrt()

"""Fully connected networks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from zoo.loss.covariance import Unwhitening, Whitening

_ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}


class MLP(nn.Module):
    """[N, n_in] -> [N, n_out]: affine layers with an activation between; none hidden: affine.

    Args:
        hidden: width of each hidden layer.
        activation: "relu", "tanh" or "gelu".
        whiten: a `Whitening` of the input comes first; whoever trains the net fits it.
        unwhiten: an `Unwhitening` of the output comes last; likewise.
        skip: an affine map of the input is added to the output of the layers, whose last one
            then begins at zero.

    Raises:
        ValueError: a width is not positive, or the activation is not known.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        hidden: Sequence[int] = (),
        activation: str = "relu",
        whiten: bool = False,
        unwhiten: bool = False,
        skip: bool = False,
    ) -> None:
        super().__init__()
        widths = [n_in, *hidden, n_out]
        if min(widths) < 1 or activation not in _ACTIVATIONS:
            raise ValueError(
                f"expected positive widths and an activation of {sorted(_ACTIVATIONS)}, got "
                f"{widths} and {activation!r}; try hidden=[256] activation=relu"
            )
        self.whitening = Whitening(n_in) if whiten else None
        self.unwhitening = Unwhitening(n_out) if unwhiten else None
        layers: list[nn.Module] = []
        for width_in, width_out in pairwise(widths):
            layers += [nn.Linear(width_in, width_out), _ACTIVATIONS[activation]()]
        self.layers = nn.Sequential(*layers[:-1])
        self.skip = nn.Linear(n_in, n_out) if skip else None
        if skip:
            nn.init.zeros_(self.layers[-1].weight)
            nn.init.zeros_(self.layers[-1].bias)

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.whitening is None else self.whitening(x)
        out = self.layers(x)
        out = out if self.skip is None else out + self.skip(x)
        return out if self.unwhitening is None else self.unwhitening(out)

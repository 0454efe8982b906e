"""Fully connected networks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from zoo.loss.covariance import Whitening

_ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}


class MLP(nn.Module):
    """[N, n_in] -> [N, n_out]: affine layers with an activation between; none hidden: affine.

    Args:
        hidden: width of each hidden layer.
        activation: "relu", "tanh" or "gelu".
        whiten: a `Whitening` of the input comes first; whoever trains the net fits it.

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
    ) -> None:
        super().__init__()
        widths = [n_in, *hidden, n_out]
        if min(widths) < 1 or activation not in _ACTIVATIONS:
            raise ValueError(
                f"expected positive widths and an activation of {sorted(_ACTIVATIONS)}, got "
                f"{widths} and {activation!r}; try hidden=[256] activation=relu"
            )
        self.whitening = Whitening(n_in) if whiten else None
        layers: list[nn.Module] = []
        for width_in, width_out in pairwise(widths):
            layers += [nn.Linear(width_in, width_out), _ACTIVATIONS[activation]()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x if self.whitening is None else self.whitening(x))

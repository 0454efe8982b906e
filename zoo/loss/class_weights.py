"""Weights of classes by how rare they are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def class_weights_of(
    frequencies: Sequence[float], exponent: float, normalize: bool
) -> tuple[float, ...]:
    """frequency ** -exponent, divided by their sum if `normalize`.

    Kurth et al. 2018 (arXiv 1810.01993) take inverse square roots, because inverse frequencies
    overflowed in fp16; DeepCAM takes exponent 0.125, not normalised.

    >>> [round(w, 4) for w in class_weights_of((0.991**2, 0.0266**2, 0.13**2), 0.5, True)]
    [0.0218, 0.812, 0.1662]
    >>> [round(w, 4) for w in class_weights_of((0.986268, 0.000457871, 0.0132743), 0.125, False)]
    [1.0017, 2.6146, 1.7164]

    Raises:
        ValueError: a frequency is not positive.
    """
    if min(frequencies) <= 0.0:
        raise ValueError(
            f"expected a positive frequency of every class, got {list(frequencies)}; a class that "
            "the training set lacks has no weight by its frequency: give class_weights"
        )
    weights = [frequency**-exponent for frequency in frequencies]
    total = sum(weights) if normalize else 1.0
    return tuple(weight / total for weight in weights)


class ClassWeighted(nn.Module):
    """A loss with a weight a class, given or derived from the training set's frequencies.

    The weights are a buffer, so they go with every checkpoint.

    Args:
        class_weights: one a class; None waits for `take_class_frequencies`.
        exponent, normalize: see `class_weights_of`.
    """

    class_weights: Tensor

    def __init__(
        self,
        n_classes: int,
        class_weights: Sequence[float] | None,
        exponent: float,
        normalize: bool,
    ) -> None:
        super().__init__()
        if class_weights is not None and len(class_weights) != n_classes:
            raise ValueError(
                f"expected {n_classes} class_weights, got {list(class_weights)}; give one a class, "
                "or null for those of the training set's frequencies"
            )
        self.n_classes, self.exponent, self.normalize = n_classes, exponent, normalize
        weights = [torch.nan] * n_classes if class_weights is None else list(class_weights)
        self.register_buffer("class_weights", torch.tensor(weights, dtype=torch.float32))

    @property
    def waits_for_frequencies(self) -> bool:
        """No weights were given, taken, or loaded yet."""
        return bool(self.class_weights.isnan().any())

    def take_class_frequencies(self, frequencies: Sequence[float]) -> None:
        """Set the weights."""
        weights = class_weights_of(frequencies, self.exponent, self.normalize)
        self.class_weights.copy_(torch.tensor(weights))

    def weights_at(self, labels: Tensor, pixel_weights: Tensor | None) -> Tensor:
        """[N, H, W] float32: of each pixel's class, times `pixel_weights` where there are any."""
        weights = self.class_weights.float()[labels]
        return weights if pixel_weights is None else weights * pixel_weights

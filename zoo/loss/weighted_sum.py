"""Several losses of one prediction, added up."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


class WeightedSum(nn.Module):
    """sum of weights[name] * terms[name](logits, labels, pixel_weights).

    Raises:
        ValueError: terms and weights have other names.
    """

    def __init__(self, terms: Mapping[str, nn.Module], weights: Mapping[str, float]) -> None:
        super().__init__()
        if not terms or set(terms) != set(weights):
            raise ValueError(
                f"expected a weight for each term, got terms {sorted(terms)} and weights "
                f"{sorted(weights)}; name the same in both"
            )
        self.terms, self.weights = nn.ModuleDict(terms), dict(weights)

    def forward(
        self, logits: Tensor, labels: Tensor, pixel_weights: Tensor | None = None
    ) -> Tensor:
        """logits [N, C, H, W], labels [N, H, W] int64, pixel_weights [H, 1] or None -> scalar."""
        return sum(
            weight * self.terms[name](logits, labels, pixel_weights)
            for name, weight in self.weights.items()
        )

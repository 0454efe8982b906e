"""What a climate data module yields."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class ClimateBatch(NamedTuple):
    """Snapshots and their masks.

    Attributes:
        index: [N] int64, in the split.
        fields: [N, C, H, W] float32 in channels-last memory, normalised; C as the data module's
            `channels`.
        labels: [N, H, W] int64: 0 background, 1 tropical cyclone, 2 atmospheric river.
    """

    index: Tensor
    fields: Tensor
    labels: Tensor

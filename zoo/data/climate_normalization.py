"""Scaling of channels before a network: min-max as S6, z-score, robust, or log1p, each by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.data.climate_channels import CHANNELS
from zoo.data.climate_statistics import ChannelTable
from zoo.errors import CheckpointError, UserError

METHODS = ("minmax", "zscore", "robust", "log1p", "none")


@dataclass(frozen=True)
class Normalization:
    """y = (f(x) - offset) / scale by channel; f is log(1 + max(x, 0) / unit) where `unit` is not 0.

    Plain tuples, so that it goes into a checkpoint and comes back under `weights_only`.
    """

    channels: tuple[str, ...]
    methods: tuple[str, ...]
    unit: tuple[float, ...]
    offset: tuple[float, ...]
    scale: tuple[float, ...]

    def __call__(self, fields: Tensor) -> Tensor:
        """[..., C, H, W] of any type -> float32 of the same memory format."""
        offset, scale = _on_device(self.offset, self.scale, fields.device)
        scaled = fields.float().sub(offset).div_(scale)
        for place, unit in enumerate(self.unit):
            if unit > 0.0:
                logarithm = torch.log1p(fields[..., place, :, :].float().clamp(min=0.0) / unit)
                scaled[..., place, :, :] = (logarithm - self.offset[place]) / self.scale[place]
        return scaled

    def state(self) -> dict[str, list[Any]]:
        """For `state_dict`."""
        names = ("channels", "methods", "unit", "offset", "scale")
        return {name: list(getattr(self, name)) for name in names}

    @classmethod
    def from_state(cls, state: Mapping[str, Sequence[Any]]) -> Normalization:
        """What `state` gave.

        Raises:
            CheckpointError: it is something else.
        """
        try:
            return cls(**{name: tuple(values) for name, values in state.items()})
        except TypeError as error:
            raise CheckpointError(
                f"expected the scaling of channels, got {sorted(state)} ({error}). Next, use a "
                "checkpoint that was trained with data=climate."
            ) from error


@lru_cache(maxsize=16)
def _on_device(
    offset: tuple[float, ...], scale: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """[C, 1, 1] each; kept, so that a step on a GPU copies nothing."""
    with torch.inference_mode(False):
        return tuple(
            torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1)
            for values in (offset, scale)
        )


def normalization(
    table: ChannelTable,
    channels: Sequence[str],
    method: str = "minmax",
    methods: Mapping[str, str] | None = None,
) -> Normalization:
    """The scaling of these channels.

    - `minmax`: (x - min) / (max - min), S6's and DeepCAM's; single outliers set the range.
    - `zscore`: (x - mean) / std.
    - `robust`: (x - p50) / (p99 - p1).
    - `log1p`: log(1 + x / mean) / log(1 + max / mean), for what is never negative: 0 .. 1.
    - `none`: as it is.

    Args:
        method: of all channels but those in `methods`.
        methods: by channel; those of CAM5's channels that are not among these are passed over.

    Raises:
        UserError: no such method or channel, or the table lacks what the method needs.
    """
    methods = dict(methods or {})
    known = dict.fromkeys((*channels, *CHANNELS))
    if unknown := [name for name in methods if name not in known]:
        raise UserError(
            f"data.normalization_of names {unknown}; expected channels out of {list(known)}. "
            "Next, correct it."
        )
    table.require(channels)
    chosen = tuple(methods.get(name, method) for name in channels)
    rows = [_row(table, name, how) for name, how in zip(channels, chosen, strict=True)]
    unit, offset, scale = zip(*rows, strict=True)
    return Normalization(tuple(channels), chosen, unit, offset, scale)


def _row(table: ChannelTable, name: str, method: str) -> tuple[float, float, float]:
    """Unit, offset and scale."""
    if method not in METHODS:
        raise UserError(
            f"{name}: expected a normalization of {', '.join(METHODS)}, got {method!r}. Next, "
            "correct data.normalization."
        )
    if method == "none":
        return 0.0, 0.0, 1.0
    number = table.row(name)
    unit, offset, scale = {
        "minmax": (0.0, number["minimum"], number["maximum"] - number["minimum"]),
        "zscore": (0.0, number["mean"], number["std"]),
        "robust": (0.0, number["p50"], number["p99"] - number["p1"]),
        "log1p": (number["mean"], 0.0, float(np.log1p(number["maximum"] / number["mean"]))),
    }[method]
    if method == "log1p" and (number["minimum"] < -1e-6 * number["maximum"] or number["mean"] <= 0):
        raise UserError(
            f"{name}: log1p expected a channel that is never negative, got a minimum of "
            f"{number['minimum']:g} in {table.source}. Next, choose another normalization for it."
        )
    if not np.isfinite([unit, offset, scale]).all():
        raise UserError(
            f"{name}: {method} needs numbers that {table.source} has not (a mean square in float32 "
            "keeps no spread). Next, set data.normalization=minmax, or data.statistics=train."
        )
    # A channel that does not vary is only moved.
    return unit, offset, scale if scale > 0.0 else 1.0

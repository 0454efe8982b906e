"""Mean, standard deviation, range and percentiles of each channel, in float64.

The statistics file of DeepCAM keeps mean and mean square in float32: for PSL, of about 100782 Pa,
their difference came out negative. Here moments are merged by Chan, Golub and LeVeque 1983
("Algorithms for computing the sample variance"), which subtracts nothing of that size.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zoo.data.hdf5 import HDF5Samples
from zoo.errors import DataFileError
from zoo.files import write_json

PERCENTILES = (1.0, 50.0, 99.0)
_KEPT_A_SAMPLE = 4096


@dataclass(frozen=True)
class ChannelStatistics:
    """Of one field, by channel (a field without channels has one): float64 tuples of length C."""

    n_values: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    minimum: tuple[float, ...]
    maximum: tuple[float, ...]
    percentiles: Mapping[str, tuple[float, ...]]
    """By "1", "50" and "99": of values drawn evenly from all samples, so approximate."""


class _Moments:
    """Running count, mean and sum of squared deviations of [C, n] values."""

    def __init__(self, n_channels: int) -> None:
        self.n_values = 0
        self.mean = np.zeros(n_channels)
        self.squares = np.zeros(n_channels)
        self.minimum = np.full(n_channels, np.inf)
        self.maximum = np.full(n_channels, -np.inf)
        self.kept: list[np.ndarray] = []

    def add(self, values: np.ndarray, generator: np.random.Generator) -> None:
        exact = values.astype(np.float64)
        n_added, mean = exact.shape[1], exact.mean(axis=1)
        squares = np.square(exact - mean[:, None]).sum(axis=1)
        n_before, self.n_values = self.n_values, self.n_values + n_added
        shift = mean - self.mean
        self.mean += shift * (n_added / self.n_values)
        self.squares += squares + np.square(shift) * (n_before * n_added / self.n_values)
        self.minimum = np.minimum(self.minimum, exact.min(axis=1))
        self.maximum = np.maximum(self.maximum, exact.max(axis=1))
        self.kept.append(exact[:, generator.integers(n_added, size=min(n_added, _KEPT_A_SAMPLE))])

    def result(self) -> ChannelStatistics:
        drawn = np.percentile(np.concatenate(self.kept, axis=1), PERCENTILES, axis=1)
        return ChannelStatistics(
            self.n_values,
            *(
                tuple(array.tolist())
                for array in (
                    self.mean,
                    np.sqrt(self.squares / self.n_values),
                    self.minimum,
                    self.maximum,
                )
            ),
            {f"{p:g}": tuple(row.tolist()) for p, row in zip(PERCENTILES, drawn, strict=True)},
        )


def build_statistics(
    samples: HDF5Samples, indices: Iterable[int] | None = None, seed: int = 0
) -> dict[str, ChannelStatistics]:
    """One pass over the samples; take the training split's alone.

    Args:
        indices: of `samples`, or what a progress bar makes of them; all by default.
    """
    generator = np.random.default_rng(seed)
    moments: dict[str, _Moments] = {}
    buffers = {
        name: np.empty(shape[1:], dtype) for name, (shape, dtype) in samples.shapes(1).items()
    }
    for index in range(len(samples)) if indices is None else indices:
        samples.read_into(index, buffers)
        for name, buffer in buffers.items():
            values = _by_channel(buffer, samples.fields[name].channel_axis)
            moments.setdefault(name, _Moments(len(values))).add(values, generator)
    return {name: each.result() for name, each in moments.items()}


def _by_channel(array: np.ndarray, axis: int | None) -> np.ndarray:
    if axis is None:
        return array.reshape(1, -1)
    return np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)


def save_statistics(path: Path, statistics: Mapping[str, ChannelStatistics]) -> None:
    """Write them as JSON, whole or not at all."""
    write_json(path, {name: asdict(each) for name, each in statistics.items()})


def load_statistics(path: Path) -> dict[str, ChannelStatistics]:
    """What `save_statistics` wrote.

    Raises:
        DataFileError: there is none, or it is something else.
    """
    try:
        content = json.loads(path.read_text())
        return {name: _statistics_from(fields) for name, fields in content.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataFileError(
            f"no usable statistics at {path}: {type(error).__name__}: {error}. Next, delete it, "
            "and the next run makes it anew."
        ) from error


def _statistics_from(fields: Mapping[str, Any]) -> ChannelStatistics:
    percentiles = {key: tuple(values) for key, values in fields["percentiles"].items()}
    rest = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    return ChannelStatistics(**rest | {"percentiles": percentiles})

"""What a collective costs: seconds as a function of bytes."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple, Protocol

import numpy as np

from lightning_gradsched.core.profile import NetworkProfile
from lightning_gradsched.errors import ProfileError

# A fit that misses the measured medians by more than this is not planned with.
GOOD_FIT = 0.25


class CostModel(Protocol):
    """Seconds that an all-reduce takes which has the link to itself.

    Takes a number of bytes, or a NumPy array of them, and returns as many seconds.
    """

    def all_reduce_s(self, nbytes: Any) -> Any: ...


@dataclass(frozen=True, slots=True)
class AlphaBeta:
    """Latency and inverse bandwidth of the whole collective.

    >>> AlphaBeta(alpha_s=1e-3, beta_s_per_byte=1e-9).all_reduce_s(1_000_000)
    0.002
    """

    alpha_s: float
    beta_s_per_byte: float

    def all_reduce_s(self, nbytes: Any) -> Any:
        return self.alpha_s + self.beta_s_per_byte * nbytes


@dataclass(frozen=True, slots=True)
class Interpolated:
    """Straight lines between measured points; beyond the last, its slope goes on.

    >>> Interpolated((0.0, 10.0), (1.0, 2.0)).all_reduce_s(30.0)
    4.0
    """

    nbytes: tuple[float, ...]
    seconds: tuple[float, ...]

    def all_reduce_s(self, nbytes: Any) -> Any:
        x, y = self.nbytes, self.seconds
        slope = max(0.0, (y[-1] - y[-2]) / (x[-1] - x[-2])) if len(x) > 1 else 0.0
        seconds = np.interp(nbytes, x, y) + np.maximum(np.subtract(nbytes, x[-1]), 0.0) * slope
        return seconds if isinstance(nbytes, np.ndarray) else float(seconds)


class Fit(NamedTuple):
    """``model`` and how far it is from the median at its worst size, as a share of that."""

    model: CostModel
    worst_error: float
    is_good: bool


def fit_all_reduce(profile: NetworkProfile) -> Fit:
    """Alpha and beta of the all-reduce, or where they fit badly, the measured medians joined up.

    Fitted to the median at each size by least squares of relative errors, so that microseconds at
    small sizes count as much as milliseconds at large ones; outliers are gone with the medians.

    Raises:
        ProfileError: fewer than two sizes of all-reduce.
    """
    nbytes, seconds = _medians(profile)
    if len(nbytes) < 2:
        raise ProfileError(f"expected all-reduces of two sizes or more, got sizes {nbytes}")
    x, y = np.array(nbytes), np.array(seconds)
    model = _least_squares(x, y)
    worst = float(np.max(np.abs(model.all_reduce_s(x) - y) / y))
    if worst <= GOOD_FIT:
        return Fit(model, worst, is_good=True)
    # Times that fall with size are noise: more bytes never take less.
    rising = np.maximum.accumulate(y)
    return Fit(Interpolated(tuple(nbytes), tuple(map(float, rising))), worst, is_good=False)


def _medians(profile: NetworkProfile) -> tuple[list[float], list[float]]:
    at: dict[float, list[float]] = defaultdict(list)
    for sample in profile.samples:
        if sample.collective == "all_reduce":
            at[float(sample.nbytes)].append(sample.seconds)
    sizes = sorted(at)
    return sizes, [median(at[size]) for size in sizes]


def _least_squares(x: Any, y: Any) -> AlphaBeta:
    """Relative least squares with neither coefficient below zero."""
    columns = np.stack([1 / y, x / y], axis=1)
    (alpha, beta), *_ = np.linalg.lstsq(columns, np.ones(len(x)), rcond=None)
    if alpha < 0:
        alpha, beta = 0.0, _alone(columns[:, 1])
    elif beta < 0:
        alpha, beta = _alone(columns[:, 0]), 0.0
    return AlphaBeta(float(alpha), float(beta))


def _alone(column: Any) -> float:
    """The coefficient that brings one column nearest to ones."""
    return float(column.sum() / (column @ column))

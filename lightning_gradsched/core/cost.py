"""What a collective costs: seconds as a function of bytes."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import combinations
from statistics import median
from typing import Any, NamedTuple, Protocol

import numpy as np

from lightning_gradsched.core.profile import ALL_REDUCE, NetworkProfile
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

    ``hides``: bytes on their way hide the latency of what follows them, so that of messages in a
    row each takes the longer of the two, not their sum.

    >>> AlphaBeta(alpha_s=1e-3, beta_s_per_byte=1e-9).all_reduce_s(1_000_000)
    0.002
    >>> AlphaBeta(alpha_s=1e-3, beta_s_per_byte=1e-9, hides=True).all_reduce_s(2_000_000)
    0.002
    """

    alpha_s: float
    beta_s_per_byte: float
    hides: bool = False

    def all_reduce_s(self, nbytes: Any) -> Any:
        transfer_s = self.beta_s_per_byte * nbytes
        if not self.hides:
            return self.alpha_s + transfer_s
        seconds = np.maximum(self.alpha_s, transfer_s)
        return seconds if isinstance(nbytes, np.ndarray) else float(seconds)


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


def least_all_reduce_s(cost: CostModel, nbytes: Any) -> Any:
    """The least that so many bytes take, in however many messages; 0 for none.

    As many bytes a second as at the best size up to theirs. Of a model whose latency does not fall
    with size that is one message; joined up points may have a better size in between.

    >>> least_all_reduce_s(AlphaBeta(alpha_s=2.0, beta_s_per_byte=1.0), np.array([0.0, 8.0]))
    array([ 0., 10.])
    >>> float(least_all_reduce_s(Interpolated((4.0, 8.0), (1.0, 10.0)), np.array([8.0]))[0])
    2.0
    """
    nbytes = np.asarray(nbytes, dtype=float)
    rate = np.array(cost.all_reduce_s(np.maximum(nbytes, 1.0))) / np.maximum(nbytes, 1.0)
    for size in cost.nbytes if isinstance(cost, Interpolated) else ():
        rate = np.where(nbytes >= size, np.minimum(rate, cost.all_reduce_s(size) / size), rate)
    return np.where(nbytes > 0, rate * nbytes, 0.0)


class Fit(NamedTuple):
    """``model``, and how far the best line is from the median at its worst size, as a share of it.

    ``odd_nbytes``: the sizes at which it is off by more than ``GOOD_FIT``. A good fit may have one.
    """

    model: CostModel
    worst_error: float
    worst_nbytes: int
    odd_nbytes: tuple[int, ...]
    is_good: bool


def fit_all_reduce(profile: NetworkProfile, collective: str = ALL_REDUCE) -> Fit:
    """Alpha and beta of the all-reduce, or where they fit badly, the measured medians joined up.

    Whether latency adds to the transfer or hides behind it, is what the medians say.
    Fitted to the median at each size by relative errors, so that microseconds at small sizes count
    as much as milliseconds at large ones. Outliers at a size go with the medians; a whole size that
    is odd (a burst that a shaped link lets through free, a step of an algorithm's) bends the line
    little, and is passed over if there are five sizes or more. Not so the largest: what comes after
    it is not known, and most groups are as large.

    Raises:
        ProfileError: fewer than two sizes of ``collective``.
    """
    nbytes, seconds = _medians(profile, collective)
    if len(nbytes) < 2:
        raise ProfileError(f"expected {collective} of two sizes or more, got sizes {nbytes}")
    x, y = np.array(nbytes), np.array(seconds)
    line = min(_robust_line(x, y), _robust_kink(x, y), key=lambda model: _off(model, x, y))
    errors = _relative_errors(line, x, y)
    odd = [int(size) for size in x[errors > GOOD_FIT]]
    passed_over = len(x) >= 5 and len(odd) == 1 and odd[0] != x[-1]
    is_good = not odd or passed_over
    model = line if is_good else Interpolated(tuple(nbytes), _rising(y))
    worst = int(np.argmax(errors))
    return Fit(model, float(errors[worst]), int(x[worst]), tuple(odd), is_good)


def _robust_line(x: Any, y: Any) -> AlphaBeta:
    """Least squares over the sizes near the line that is off by the least, added up over sizes.

    Tried are the lines through two of the points, and through one with a coefficient of 0, as in
    fits of least absolute errors (Boscovich 1757).
    """
    lines = [AlphaBeta(0.0, float(b / a)) for a, b in zip(x, y, strict=True)]
    lines += [AlphaBeta(float(alpha), 0.0) for alpha in y]
    lines += [
        _least_squares(x[list(pair)], y[list(pair)]) for pair in combinations(range(len(x)), 2)
    ]

    near = _relative_errors(min(lines, key=lambda line: _off(line, x, y)), x, y) <= GOOD_FIT
    return _least_squares(x[near], y[near])


def _robust_kink(x: Any, y: Any) -> AlphaBeta:
    """As ``_robust_line``, where latency hides: flat through one point, then through another."""
    rates = [float(b / a) for a, b in zip(x, y, strict=True)]
    kinks = [AlphaBeta(float(alpha), rate, hides=True) for alpha in y for rate in rates]
    best = min(kinks, key=lambda kink: _off(kink, x, y))
    near = _relative_errors(best, x, y) <= GOOD_FIT
    is_flat = best.beta_s_per_byte * x <= best.alpha_s
    flat, rising = near & is_flat, near & ~is_flat
    alpha_s = _alone(1 / y[flat]) if flat.any() else best.alpha_s
    beta = _alone(x[rising] / y[rising]) if rising.any() else best.beta_s_per_byte
    return AlphaBeta(alpha_s, beta, hides=True)


def _off(model: AlphaBeta, x: Any, y: Any) -> float:
    """Errors count as ratios, so that half the time is as odd as twice."""
    return float(np.abs(np.log(model.all_reduce_s(x) / y)).sum())


def _rising(y: Any) -> tuple[float, ...]:
    """``y`` without its falls, which are noise: more bytes never take less.

    Midway between the most so far and the least to come, so that one odd size lifts none for long.
    """
    most, least = np.maximum.accumulate(y), np.minimum.accumulate(y[::-1])[::-1]
    return tuple(map(float, np.sqrt(most * least)))


def _relative_errors(line: AlphaBeta, x: Any, y: Any) -> Any:
    return np.abs(line.all_reduce_s(x) - y) / y


def _medians(profile: NetworkProfile, collective: str) -> tuple[list[float], list[float]]:
    at: dict[float, list[float]] = defaultdict(list)
    for sample in profile.samples:
        if sample.collective == collective:
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

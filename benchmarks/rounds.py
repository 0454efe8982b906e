"""Rivals side by side: who goes first in a round, what each takes, and their ratio within it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median, quantiles
from time import perf_counter
from typing import NamedTuple

import torch
import torch.distributed as dist

COMM_REPEATS = 5


class Ratio(NamedTuple):
    """Of two rivals' times in the same round: the median over the rounds, and its quartiles."""

    middle: float
    low: float
    high: float


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """Both by round.

    >>> ratio([2.0, 3.0, 4.0], [2.0, 2.0, 2.0])
    Ratio(middle=1.5, low=1.0, high=2.0)
    """
    low, middle, high = quantiles([a / b for a, b in zip(ours, theirs, strict=True)], n=4)
    return Ratio(middle, low, high)


def in_turn(names: Iterable[str], number: int) -> list[str]:
    """The names in the order of round ``number``: each goes first in its turn.

    >>> in_turn(["a", "b", "c"], 4)
    ['b', 'c', 'a']
    """
    order = list(names)
    shift = number % len(order)
    return order[shift:] + order[:shift]


def timed(step: Callable[[], None]) -> Callable[[], float]:
    """Runs it, and returns the seconds that it took."""

    def run() -> float:
        start_s = perf_counter()
        step()
        return perf_counter() - start_s

    return run


def time_in_turn(
    rivals: Mapping[str, Callable[[], float]], rounds: Iterable[int]
) -> dict[str, list[float]]:
    """What each rival returns, by round; ranks begin each together. All ranks call it."""
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for number in rounds:
        for name in in_turn(rivals, number):
            dist.barrier()
            seconds[name].append(rivals[name]())
    return seconds


def all_reduce_s(numel: int, dtype: torch.dtype = torch.float32) -> float:
    """One all-reduce of all gradients, with the link to itself: the least that a step must send."""
    flat = torch.zeros(numel, dtype=dtype)
    seconds = []
    for _ in range(COMM_REPEATS):
        dist.barrier()
        start_s = perf_counter()
        dist.all_reduce(flat)
        seconds.append(perf_counter() - start_s)
    return median(slowest(seconds))


def slowest(seconds: list[float]) -> list[float]:
    """Of each measurement, the slowest rank's."""
    values = torch.tensor(seconds, dtype=torch.float64)
    dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return list(values.tolist())

"""What a claim is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from matplotlib.figure import Figure

# A share of the work that is done, in [0, 1].
Advance = Callable[[float], None]
Measured = dict[str, Any]


class Check(NamedTuple):
    """A tolerance: what was asked, what was measured, and whether it holds."""

    asked: str
    measured: str
    holds: bool


class Rows(NamedTuple):
    """A table."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim of a paper and how it is measured.

    Attributes:
        name: for `--only`.
        source: paper, and where in it.
        published: what could be verified of its numbers; says so where nothing could.
        experiments: commands that train one network of it through Lightning.
        measure: (small, advance) -> numbers that JSON can hold, "seeds" among them. `small` is a
            form of under five minutes on two cores.
        checks: numbers -> tolerances. table, plot: numbers -> what the page shows of them.
        remarks: an honest reading, below the table.
    """

    name: str
    title: str
    source: str
    published: str
    experiments: Sequence[str]
    measure: Callable[[bool, Advance], Measured]
    checks: Callable[[Measured], list[Check]]
    table: Callable[[Measured], Rows]
    plot: Callable[[Measured], Figure]
    remarks: str = ""


def at_most(what: str, value: float, limit: float) -> Check:
    """`value` <= `limit`."""
    return Check(f"{what} ≤ {limit:g}", f"{value:.3g}", value <= limit)


def at_least(what: str, value: float, limit: float) -> Check:
    """`value` >= `limit`."""
    return Check(f"{what} ≥ {limit:g}", f"{value:.3g}", value >= limit)


def between(what: str, value: float, low: float, high: float) -> Check:
    """`low` <= `value` <= `high`."""
    return Check(f"{low:g} ≤ {what} ≤ {high:g}", f"{value:.3f}", low <= value <= high)


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation (n - 1) of a few seeds."""
    mean = sum(values) / len(values)
    spread = (sum((v - mean) ** 2 for v in values) / max(len(values) - 1, 1)) ** 0.5
    return mean, spread


def sizes_of(measured: Measured) -> list[int]:
    """The sizes of the training sets of its runs."""
    return sorted({run["n_train"] for run in measured["runs"]})

"""What a backward pass looks like to the planners."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class ParamProfile(NamedTuple):
    """One parameter's gradient.

    ``dtype`` and ``device`` are strings as torch prints them without the module
    (``"float32"``, ``"cuda:0"``): gradients that differ in either cannot travel together.
    """

    name: str
    nbytes: int
    dtype: str = "float32"
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class BackwardProfile:
    """The gradients of one backward pass, in the order in which they become final."""

    params: tuple[ParamProfile, ...]

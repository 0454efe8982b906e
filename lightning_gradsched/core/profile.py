"""What a backward pass and a network look like to the planners; to and from JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any, NamedTuple

from lightning_gradsched.errors import ProfileError


class ParamProfile(NamedTuple):
    """One parameter's gradient.

    ``dtype`` and ``device`` are strings as torch prints them without the module
    (``"float32"``, ``"cuda:0"``): gradients that differ in either cannot travel together.
    ``ready_s``: when the gradient is final, since backward began. ``needed_s``: when the next
    forward uses the parameter first, since that forward began.
    """

    name: str
    nbytes: int
    dtype: str = "float32"
    device: str = "cpu"
    ready_s: float = 0.0
    needed_s: float = 0.0


@dataclass(frozen=True, slots=True)
class BackwardProfile:
    """The gradients of one step, in the order in which they become final.

    Raises:
        ProfileError: a negative or non-finite time or size, a name that comes twice, or ready times
            that go down.
    """

    params: tuple[ParamProfile, ...]
    forward_s: float = 0.0
    backward_s: float = 0.0

    def __post_init__(self) -> None:
        _check_times("forward_s", "backward_s", self.forward_s, self.backward_s)
        seen: set[str] = set()
        ready_s = 0.0
        for p in self.params:
            _check_times(f"{p.name}: ready_s", "needed_s, nbytes", p.ready_s, p.needed_s, p.nbytes)
            if p.name in seen:
                raise ProfileError(f"expected each parameter once, got {p.name!r} twice")
            if p.ready_s < ready_s:
                raise ProfileError(
                    f"expected parameters in ready order, got {p.name!r} ready at {p.ready_s} s"
                    f" after one at {ready_s} s; sort them by ready_s"
                )
            seen.add(p.name)
            ready_s = p.ready_s

    def to_json(self) -> str:
        return json.dumps({"kind": "backward", **_plain(self)})

    @classmethod
    def from_json(cls, text: str) -> BackwardProfile:
        value = _read(text, "backward", {"params", "forward_s", "backward_s"})
        return cls(
            tuple(_named_tuple(ParamProfile, row) for row in value["params"]),
            value["forward_s"],
            value["backward_s"],
        )


# The collectives of samples: over all ranks at once, and through the nodes.
ALL_REDUCE = "all_reduce"
HIERARCHICAL_ALL_REDUCE = "hierarchical_all_reduce"


class Sample(NamedTuple):
    """One timed collective: it took ``seconds`` on a message of ``nbytes``."""

    collective: str
    nbytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class NetworkProfile:
    """Timed collectives of one process group; ``ranks_per_node`` is that of the fullest node."""

    backend: str
    world_size: int
    n_nodes: int
    ranks_per_node: int
    samples: tuple[Sample, ...]

    def __post_init__(self) -> None:
        for count in (self.world_size, self.n_nodes, self.ranks_per_node):
            if not (isinstance(count, int) and count >= 1):
                raise ProfileError(
                    "world_size, n_nodes, ranks_per_node: expected whole numbers from 1 up, got"
                    f" {count!r}"
                )
        if not self.samples:
            raise ProfileError("expected timed collectives, got an empty ladder of sizes")
        for sample in self.samples:
            _check_times(f"{sample.collective}: nbytes", "seconds", sample.nbytes, sample.seconds)
            if sample.seconds == 0 or sample.nbytes == 0:
                raise ProfileError(f"expected bytes that took time, got 0 in {sample}")

    def to_json(self) -> str:
        return json.dumps({"kind": "network", **_plain(self)})

    @classmethod
    def from_json(cls, text: str) -> NetworkProfile:
        keys = {"backend", "world_size", "n_nodes", "ranks_per_node", "samples"}
        value = _read(text, "network", keys)
        samples = tuple(_named_tuple(Sample, row) for row in value.pop("samples"))
        return cls(**value, samples=samples)


def _check_times(first: str, rest: str, *values: float) -> None:
    for value in values:
        if not (isinstance(value, (int, float)) and isfinite(value) and value >= 0):
            raise ProfileError(f"{first}, {rest}: expected finite numbers from 0 up, got {value!r}")


def _plain(profile: Any) -> dict[str, Any]:
    """``asdict`` with rows as objects, so that a reader need not count columns."""
    value = asdict(profile)
    return {
        key: [row._asdict() for row in item] if isinstance(item, tuple) else item
        for key, item in value.items()
    }


def _read(text: str, kind: str, keys: Iterable[str]) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ProfileError(f"expected a {kind} profile in JSON, got no JSON: {error}") from error
    found = value.pop("kind", None) if isinstance(value, dict) else None
    if found != kind or set(value) != set(keys):
        raise ProfileError(
            f"expected a {kind} profile with {sorted(keys)}, got kind {found!r}"
            f" with {sorted(value) if isinstance(value, dict) else type(value).__name__}"
        )
    return dict(value)


def _named_tuple(cls: Any, row: Any) -> Any:
    try:
        return cls(**row)
    except TypeError as error:
        raise ProfileError(f"expected {cls.__name__} with {cls._fields}, got {row}") from error

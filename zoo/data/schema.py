"""What a sample is made of: for each field its dataset in the file, its shape, type and layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from zoo.errors import UserError

LAYOUTS = ("", "HW", "HWC", "CHW")


@dataclass(frozen=True)
class Field:
    """One array of a sample, as it lies in a file.

    Args:
        dataset: path of the dataset in the file, such as `climate/data`.
        shape: of one sample, as stored.
        dtype: as stored, such as `float32`.
        layout: meaning of the axes. HWC reaches the network as [C, H, W] in channels-last memory.
        channels: names along the axis C, in the order of the file.
        select: which of them to read, in this order; all, if empty.
        n_classes: for labels, which must then lie in 0 .. n_classes - 1.

    Raises:
        UserError: shape, layout and channels contradict each other.
    """

    dataset: str
    shape: tuple[int, ...]
    dtype: str
    layout: str = ""
    channels: tuple[str, ...] = ()
    select: tuple[str, ...] = ()
    n_classes: int | None = None

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS or (self.layout and len(self.layout) != len(self.shape)):
            raise self._error(f"layout one of {LAYOUTS}, an axis a letter", self.layout)
        axis = self.channel_axis
        if self.channels and (axis is None or self.shape[axis] != len(self.channels)):
            raise self._error(f"one channel name along C of {self.shape}", self.channels)
        if unknown := [name for name in self.select if name not in self.channels]:
            raise self._error(f"selected channels out of {self.channels}", unknown)

    @property
    def channel_axis(self) -> int | None:
        """Position of C among the axes of one sample."""
        return self.layout.index("C") if "C" in self.layout else None

    @property
    def channel_indices(self) -> tuple[int, ...]:
        """Positions of the selected channels; empty where all are read."""
        chosen = tuple(self.channels.index(name) for name in self.select)
        return () if chosen == tuple(range(len(self.channels))) else chosen

    @property
    def read_shape(self) -> tuple[int, ...]:
        """Of one sample, as read: only the selected channels, axes in the order of the file."""
        axis, chosen = self.channel_axis, self.channel_indices
        if axis is None or not chosen:
            return self.shape
        return (*self.shape[:axis], len(chosen), *self.shape[axis + 1 :])

    @property
    def nbytes(self) -> int:
        """Of one sample, as stored."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize

    def _error(self, expected: str, got: object) -> UserError:
        return UserError(
            f"field {self.dataset}: expected {expected}, got {got!r}. Next, correct it in the "
            "schema (data.schema)."
        )


Schema = Mapping[str, Field]
"""By the name under which a field arrives in a batch."""


def schema_from(config: Mapping[str, Any]) -> dict[str, Field]:
    """A schema out of plain mappings, as YAML and JSON give them.

    >>> schema_from({"x": {"dataset": "a/x", "shape": [2, 3], "dtype": "float32"}})["x"].nbytes
    24
    """
    if not config:
        raise UserError(
            "expected a schema with at least one field, got none. Next, set data.schema"
        )
    return {
        str(name): field if isinstance(field, Field) else _field_from(str(name), field)
        for name, field in config.items()
    }


def _field_from(name: str, config: Mapping[str, Any]) -> Field:
    sequences = ("shape", "channels", "select")
    values = {
        key: tuple(value or ()) if key in sequences else value for key, value in config.items()
    }
    try:
        np.dtype(values.get("dtype"))
        return Field(**values)
    except TypeError as error:
        raise UserError(
            f"field {name}: expected dataset, shape, dtype and if need be layout, channels, "
            f"select, n_classes; got {dict(config)} ({error}). Next, correct it in the schema "
            "(data.schema)."
        ) from error


def schema_as_json(schema: Schema) -> dict[str, Any]:
    """What `schema_from` takes back, without which channels are read: that is no fact of a file."""
    plain = {name: asdict(field) for name, field in schema.items()}
    for field in plain.values():
        del field["select"]
    return {
        name: {k: list(v) if isinstance(v, tuple) else v for k, v in field.items()}
        for name, field in plain.items()
    }

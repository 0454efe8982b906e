"""Which values of a sample are no data."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from zoo.data.schema import Field
from zoo.errors import BadSampleError


def wrong_values(field: Field, array: np.ndarray) -> str | None:
    """What a sample's values ought to be, and how many are not; None if all are good."""
    if wrong := not_finite(array):
        return wrong
    if field.n_classes is not None:
        low, high = array.min(), array.max()
        if low < 0 or high >= field.n_classes:
            return f"labels 0 to {field.n_classes - 1}, got {low} to {high}"
    return None


def not_finite(array: np.ndarray) -> str | None:
    """What floating-point numbers ought to be, and how many are not; None if all are good."""
    # A sum is cheaper than a mask, and tells; but it may overflow where all are good.
    if array.dtype.kind == "f" and not np.isfinite(np.sum(array, dtype=np.float64)):
        n_bad = int(array.size - np.isfinite(array).sum())
        if n_bad:
            return f"finite numbers, got {n_bad} NaN or infinite"
    return None


def bad_sample(path: Path, sample: int, field: Field, wrong: str) -> BadSampleError:
    """The error for what `wrong_values` found in a sample of a file."""
    return BadSampleError(
        f"{path}: sample {sample} of {field.dataset} expected {wrong}. Next, make it again, or "
        "leave it out with data.on_bad=skip."
    )

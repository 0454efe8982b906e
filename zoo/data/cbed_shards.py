"""A data set of convergent-beam electron diffraction as HDF5 shards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from zoo.data.crystals import make_sample, size_named
from zoo.data.generated import generate_alone, require_finished
from zoo.data.manifest import Manifest
from zoo.data.schema import Field, Schema
from zoo.data.shards import ShardWriter
from zoo.errors import UserError

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True)
class CbedShards:
    """What to generate: called with an index, it makes that sample.

    Args:
        size: a name in `zoo.data.crystals.SIZES`.
        n_samples: crystals for training, validation and test, where not the size's own.

    Raises:
        UserError: there is no such size, or `n_samples` are not three numbers of 1 or more.
    """

    size: str
    seed: int = 0
    n_samples: Sequence[int] | None = None

    def __post_init__(self) -> None:
        size_named(self.size)
        counts = self.counts
        if len(counts) != len(SPLITS) or min(counts) < 1:
            raise UserError(
                f"n_samples does not fit. Expected three numbers of 1 or more (train, val, test), "
                f"got {list(counts)}. Next, set n_samples=[400,32,64] or leave it out."
            )

    @property
    def counts(self) -> tuple[int, ...]:
        """Samples for training, validation and test."""
        size = size_named(self.size)
        return tuple(self.n_samples or (size.n_train, size.n_val, size.n_test))

    @property
    def schema(self) -> Schema:
        size = size_named(self.size)
        return {
            "cbed": Field("cbed", size.cbed_shape, "float32", "CHW"),
            "potential": Field("potential", size.potential_shape, "float32", "CHW"),
        }

    def __call__(self, index: int) -> dict[str, np.ndarray]:
        sample = make_sample(size_named(self.size), self.seed, index)
        return {"cbed": sample.cbed.numpy(), "potential": sample.potential.numpy()}

    def indices_of(self, split: Split) -> range:
        """Which samples are the split's; each is a crystal of its own."""
        position = SPLITS.index(split)
        start = sum(self.counts[:position])
        return range(start, start + self.counts[position])

    def writer(self, folder: Path) -> ShardWriter:
        n_train, n_val, n_test = self.counts
        return ShardWriter(
            folder,
            self.schema,
            n_samples=sum(self.counts),
            samples_per_shard=size_named(self.size).samples_per_shard,
            attributes={
                "dataset": "cbed",
                "size": self.size,
                "seed": self.seed,
                "n_train": n_train,
                "n_val": n_val,
                "n_test": n_test,
            },
        )

    def generate(self, folder: Path, n_processes: int = 1) -> Manifest:
        """Write what is missing in `folder`: see `generate_alone`."""
        return generate_alone(self.writer(folder), self, n_processes, "crystals")

    def require(self, folder: Path) -> Manifest:
        """The manifest of a finished data set: see `require_finished`."""
        options = f"dataset=cbed size={self.size} seed={self.seed}"
        return require_finished(self.writer(folder), options)

"""A data set of convergent-beam electron diffraction as HDF5 shards."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from rich.progress import track

from zoo.data.crystals import make_sample, size_named
from zoo.data.manifest import Manifest
from zoo.data.schema import Field, Schema
from zoo.data.shards import ShardWriter, generate_shards
from zoo.errors import DataFileError, UserError

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
        """Write what is missing in `folder`, with a progress bar. One process calls it.

        Raises:
            DataFileError, DiskFullError: the folder holds something else, or cannot be written to.
            UserError: another process is at it, or one of the processes died.
        """
        writer = self.writer(folder)
        if not writer.open_shards():
            return writer.finish()
        with _alone_in(folder):
            try:
                return generate_shards(writer, self, n_processes, _progress)
            except BrokenProcessPool as error:
                raise UserError(
                    f"a process that wrote shards to {folder} died (out of memory?). Finished "
                    f"shards are kept. Next, run it again with fewer than n_processes="
                    f"{n_processes}."
                ) from error

    def require(self, folder: Path) -> Manifest:
        """The manifest of a finished data set.

        Raises:
            DataFileError: it is not finished, or another one.
        """
        writer = self.writer(folder)
        if missing := writer.open_shards():
            raise DataFileError(
                f"{folder} is not finished: {len(missing)} of {writer.n_shards} shards are "
                f"missing. Next, on this machine, python -m zoo.data.generate dataset=cbed "
                f"size={self.size} seed={self.seed} folder={folder}"
            )
        return writer.finish()


def _progress(shards: Iterator, n_shards: int) -> Iterator:
    return iter(track(shards, total=n_shards, description="crystals (shards)"))


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Keep a second process from writing the same shards; a kill frees the lock."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".generating").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another process is generating in {folder}. Next, wait for it and run the same "
                "command again."
            ) from None
        except OSError:
            # Some network file systems have no locks; then it is up to the user.
            pass
        yield

"""LMDB stores of the S1 layout into HDF5 shards: `python -m zoo.data.convert STORE... FOLDER`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from zoo.data.lmdb_records import LMDBRecords
from zoo.data.manifest import Manifest
from zoo.data.shards import ShardWriter, generate_shards
from zoo.errors import user_errors

_NAMES = {"input": "cbed", "output": "potential"}


def convert(
    stores: Sequence[Path],
    folder: Path,
    samples_per_shard: int = 16,
    n_processes: int = 1,
    progress: Callable[[Iterable[Any], int], Iterator[Any]] | None = None,
) -> Manifest:
    """Shards with the datasets `cbed` and `potential`, bytes unchanged; resumable."""
    records = LMDBRecords(stores)
    schema = {name: replace(field, dataset=_NAMES[name]) for name, field in records.fields.items()}
    writer = ShardWriter(folder, schema, len(records), samples_per_shard)
    return generate_shards(writer, partial(_sample, records), n_processes, progress)


def _sample(records: LMDBRecords, index: int) -> dict[str, np.ndarray]:
    arrays = {name: np.empty(shape, dtype) for name, (shape, dtype) in records.shapes(1).items()}
    records.read_batch([index], arrays)
    return {name: array[0] for name, array in arrays.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    from zoo.progress import labelled

    options = _parser().parse_args(arguments)
    with user_errors():
        manifest = convert(
            options.stores,
            options.folder,
            options.samples_per_shard,
            options.processes,
            labelled("Converting"),
        )
        print(
            f"{options.folder}: {manifest.n_samples} samples in {len(manifest.files)} shards, "
            f"{manifest.nbytes / 1e9:.3f} GB"
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m zoo.data.convert",
        description="Turn LMDB stores of the S1 layout (nlaanait/stemdl) into HDF5 shards with a "
        "manifest. Needs the package lmdb. Stopped and run again, it goes on.",
    )
    parser.add_argument("stores", nargs="+", type=Path, help="such as batch_train_0.db")
    parser.add_argument("folder", type=Path, help="where the shards go")
    parser.add_argument("--samples-per-shard", type=int, default=16, help="default: 16")
    parser.add_argument("--processes", type=int, default=1, help="default: 1")
    return parser


if __name__ == "__main__":
    main()

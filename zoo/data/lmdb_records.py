"""Reads the record stores of Laanait et al. 2019 (`nlaanait/stemdl`): one LMDB a rank.

A store holds for each sample `<input_name><i>` and `<output_name><i>`, raw bytes, and six headers:
input_shape, output_shape (int64), input_dtype, output_dtype, input_name, output_name.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zoo.data.schema import Field
from zoo.data.slab import Shapes
from zoo.errors import DataFileError, SchemaMismatchError, UserError

_N_HEADERS = 6


class LMDBRecords:
    """A map-style data set over several stores as one flat index; fields `input` and `output`.

    Batches are read as those of `zoo.data.hdf5.HDF5Samples` are: the same `Loader`, no copies
    between processes. Environments belong to the process that opened them.

    Args:
        paths: the stores, such as `batch_train_0.db`: folders, or files.

    Raises:
        UserError: the package lmdb is missing. DataFileError: a store is missing or damaged.
        SchemaMismatchError: stores of unlike shapes.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = [Path(path) for path in paths]
        self._stores: dict[int, Any] = {}
        self._pid = os.getpid()
        headers = [
            _read_headers(self._store(number), path) for number, path in enumerate(self.paths)
        ]
        self.fields, self._names = _common(headers, self.paths)
        self._first = np.cumsum([0, *(header["n_samples"] for header in headers)])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_stores": {}}

    def __len__(self) -> int:
        return int(self._first[-1])

    def shapes(self, n_samples: int) -> Shapes:
        """Shape and dtype of the buffer for so many samples, by field."""
        return {
            name: ((n_samples, *field.shape), np.dtype(field.dtype))
            for name, field in self.fields.items()
        }

    def read_batch(self, indices: Sequence[int], buffers: Mapping[str, np.ndarray]) -> None:
        """Read samples into the rows of buffers as `shapes` describes them."""
        for row, index in enumerate(indices):
            number = int(np.searchsorted(self._first, index, side="right")) - 1
            with self._store(number).begin(buffers=True) as transaction:
                for name, buffer in buffers.items():
                    key = f"{self._names[name]}{index - self._first[number]}"
                    self._copy(transaction.get(key.encode()), buffer[row], number, key)

    def as_tensors(self, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Tensors that share the arrays' memory."""
        import torch

        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def __getitem__(self, index: int) -> dict[str, Any]:
        arrays = {name: np.empty(shape, dtype) for name, (shape, dtype) in self.shapes(1).items()}
        self.read_batch([index], arrays)
        return {name: tensor[0] for name, tensor in self.as_tensors(arrays).items()}

    def close(self) -> None:
        """Close this process's environments; the next read opens them again."""
        if self._pid == os.getpid():
            for store in self._stores.values():
                store.close()
        self._stores = {}

    def _store(self, number: int) -> Any:
        if self._pid != os.getpid():
            self._stores, self._pid = {}, os.getpid()
        if number not in self._stores:
            self._stores[number] = _open(self.paths[number])
        return self._stores[number]

    def _copy(self, record: Any, row: np.ndarray, number: int, key: str) -> None:
        if record is None or len(record) != row.nbytes:
            got = "nothing" if record is None else f"{len(record)} bytes"
            raise DataFileError(
                f"{self.paths[number]}: record {key} expected {row.nbytes} bytes, got {got}. Next, "
                "copy the store again."
            )
        row.reshape(-1).view(np.uint8)[:] = np.frombuffer(record, np.uint8)


def _open(path: Path) -> Any:
    try:
        import lmdb
    except ImportError as error:
        raise UserError(
            "reading LMDB needs the package lmdb. Next, `pip install lmdb`, or "
            "`pip install '.[lmdb]'` from the checkout."
        ) from error
    try:
        return lmdb.open(
            str(path), subdir=path.is_dir(), readonly=True, lock=False, readahead=False
        )
    except lmdb.Error as error:
        raise DataFileError(
            f"{path} cannot be opened. Expected an LMDB store, got: {error}. Next, copy it again."
        ) from error


def _read_headers(store: Any, path: Path) -> dict[str, Any]:
    with store.begin() as transaction:
        raw = {
            f"{side}_{what}": transaction.get(f"{side}_{what}".encode())
            for side in ("input", "output")
            for what in ("shape", "dtype", "name")
        }
    if missing := [key for key, value in raw.items() if value is None]:
        raise DataFileError(
            f"{path} is of another layout: expected the headers of an S1 store, {missing} are "
            "missing. Next, name a store that has them."
        )
    headers: dict[str, Any] = {"n_samples": (store.stat()["entries"] - _N_HEADERS) // 2}
    for side in ("input", "output"):
        shape = np.frombuffer(raw[f"{side}_shape"], np.int64)
        dtype = np.dtype(raw[f"{side}_dtype"].decode())
        headers[side] = Field(side, tuple(shape.tolist()), dtype.name)
        headers[f"{side}_name"] = raw[f"{side}_name"].decode()
    return headers


def _common(
    headers: Sequence[dict[str, Any]], paths: Sequence[Path]
) -> tuple[dict[str, Field], dict[str, str]]:
    if not headers:
        raise DataFileError("expected at least one LMDB store, got none. Next, name one.")
    first = {key: value for key, value in headers[0].items() if key != "n_samples"}
    for header, path in zip(headers, paths, strict=True):
        if (got := {key: header[key] for key in first}) != first:
            raise SchemaMismatchError(
                f"{path} is of another schema than {paths[0]}: expected {first}, got {got}. Next, "
                "read them apart."
            )
    sides = ("input", "output")
    return {side: first[side] for side in sides}, {side: first[f"{side}_name"] for side in sides}

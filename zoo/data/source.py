"""One open HDF5 file, read sample by sample into buffers of the caller.

[Note: reading past HDF5] A sample that lies in one piece, as written and in the machine's own byte
order, is read by `preadv` at the place that HDF5 names, straight into the caller's buffer: that is
what HDF5 does below, without its lock and its selection of hyperslabs (they cost as much as reading
half a megabyte). Compressed, converted or cut-up samples go through `Dataset.read_direct`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

from zoo.data.schema import Field, Schema
from zoo.errors import DataFileError, SchemaMismatchError, TruncatedFileError

_READ_AT_ONCE_NBYTES = 1 << 30


class Source:
    """See `open_source`. Belongs to the process that opened it."""

    def __init__(self, path: Path, file: h5py.File, schema: Schema, dataset: str | None) -> None:
        self.path = path
        self._file = file
        self._fd = os.open(path, os.O_RDONLY)
        self._fields = dict(schema)
        self._datasets = {
            name: _checked(path, file, field, dataset) for name, field in schema.items()
        }
        self._places = {name: _places(ds, schema[name]) for name, ds in self._datasets.items()}
        self._scratch: dict[str, np.ndarray] = {}
        self.n_samples = self._common_length()

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give back both handles of the file; call once."""
        os.close(self._fd)
        self._datasets.clear()
        self._file.close()

    def read(self, name: str, index: int, out: np.ndarray) -> None:
        """Read a field of sample `index` into `out`: C-contiguous, `read_shape`, stored dtype.

        Raises:
            TruncatedFileError: the file ends before the sample does. DataFileError: other damage.
        """
        field, place = self._fields[name], self._places[name]
        try:
            if not field.channel_indices:
                self._read_whole(name, index, out)
            elif field.channel_axis == 0 and place is not None:
                offset, plane = place(index), out[0].nbytes
                for row, channel in zip(out, field.channel_indices, strict=True):
                    self._pread(row, offset + channel * plane)
            else:
                whole = self._scratch.setdefault(name, np.empty(field.shape, field.dtype))
                self._read_whole(name, index, whole)
                # "clip": with "raise", numpy would fill a copy first.
                np.take(whole, field.channel_indices, field.channel_axis, out=out, mode="clip")
        except OSError as error:
            raise DataFileError(
                f"{self.path}: sample {index} of {field.dataset} cannot be read ({error}). Next, "
                "copy the file again, or leave it out with data.on_bad=skip."
            ) from error

    def _read_whole(self, name: str, index: int, out: np.ndarray) -> None:
        place, dataset = self._places[name], self._datasets[name]
        if place is not None:
            self._pread(out, place(index))
        elif dataset.shape == self._fields[name].shape:
            dataset.read_direct(out)
        else:
            dataset.read_direct(out, source_sel=np.s_[index])

    def _pread(self, out: np.ndarray, offset: int) -> None:
        left = memoryview(out.reshape(-1).view(np.uint8))
        while left:
            n_read = os.preadv(self._fd, [left[:_READ_AT_ONCE_NBYTES]], offset)
            if n_read == 0:
                raise truncated(self.path, f"its end {len(left)} bytes before the end of a sample")
            left, offset = left[n_read:], offset + n_read

    def _common_length(self) -> int:
        lengths = {
            name: 1 if dataset.shape == self._fields[name].shape else dataset.shape[0]
            for name, dataset in self._datasets.items()
        }
        if len(set(lengths.values())) != 1:
            raise SchemaMismatchError(
                f"{self.path}: expected as many samples of each field, got {lengths}. Next, make "
                "the file again."
            )
        return int(next(iter(lengths.values())))


def open_source(path: Path, schema: Schema, dataset: str | None = None) -> Source:
    """Open a file for reading, without locks, and check it against the schema.

    A dataset of the field's shape holds one sample; one with an axis in front, one a row.

    Args:
        dataset: path that stands for the schema's own, whose only field is meant.

    Raises:
        TruncatedFileError, SchemaMismatchError, DataFileError: what is wrong with which file.
    """
    file = open_hdf5(path)
    try:
        return Source(path, file, schema, dataset)
    except BaseException:
        file.close()
        raise


def open_hdf5(path: Path) -> h5py.File:
    """The file, for reading, without locks.

    Raises:
        TruncatedFileError: it ends too early. DataFileError: it is missing, or no HDF5 file.
    """
    try:
        # Many file systems of clusters have no locks, and nobody writes to a finished file.
        return h5py.File(path, "r", locking=False)
    except FileNotFoundError as error:
        raise DataFileError(
            f"no data file {path}. Expected one, as its manifest lists it; next, copy it again or "
            "correct data.root."
        ) from error
    except OSError as error:
        if "truncated file" in str(error):
            raise truncated(path, str(error)) from error
        raise DataFileError(
            f"{path} cannot be opened. Expected an HDF5 file, got: {error}. Next, copy it again."
        ) from error


def truncated(path: Path, got: str) -> TruncatedFileError:
    return TruncatedFileError(
        f"{path} is truncated. Expected the whole file, got {got}. Next, copy it again, or leave "
        "out what is bad with data.on_bad=skip."
    )


def _checked(path: Path, file: h5py.File, field: Field, dataset: str | None) -> h5py.Dataset:
    key = dataset or field.dataset
    found = file.get(key)
    if not isinstance(found, h5py.Dataset):
        raise _mismatch(path, key, field, f"no such dataset among {sorted(_dataset_names(file))}")
    if found.dtype != np.dtype(field.dtype) or field.shape not in (found.shape, found.shape[1:]):
        raise _mismatch(path, key, field, f"{found.dtype} {found.shape}")
    return found


def _dataset_names(file: h5py.File) -> list[str]:
    names: list[str] = []
    file.visititems(lambda name, item: names.append(name) if _is_dataset(item) else None)
    return names


def _is_dataset(item: object) -> bool:
    return isinstance(item, h5py.Dataset)


def _mismatch(path: Path, key: str, field: Field, got: str) -> SchemaMismatchError:
    return SchemaMismatchError(
        f"{path} is of another schema: /{key} expected {field.dtype} {field.shape}, with or "
        f"without an axis of samples in front; got {got}. Next, correct data.schema or data.root."
    )


def _places(dataset: h5py.Dataset, field: Field) -> Callable[[int], int] | None:
    """Where in the file each sample begins; None where only HDF5 can read it."""
    native = dataset.dtype.isnative and dataset.dtype.kind in "iufb"
    creation = dataset.id.get_create_plist()
    if not native or creation.get_nfilters() or dataset.file.userblock_size:
        return None
    if creation.get_layout() == h5py.h5d.CONTIGUOUS and not creation.get_external_count():
        start = dataset.id.get_offset()
        return None if start is None else lambda index: start + index * field.nbytes
    if dataset.chunks == (1, *field.shape) or dataset.chunks == dataset.shape == field.shape:
        return _chunk_places(dataset)
    return None


def _chunk_places(dataset: h5py.Dataset) -> Callable[[int], int] | None:
    n_chunks = 1 if dataset.chunks == dataset.shape else dataset.shape[0]
    if dataset.id.get_num_chunks() != n_chunks:  # some were never written
        return None
    corner = (0,) * (dataset.ndim - 1)
    return lambda index: dataset.id.get_chunk_info_by_coord((index, *corner)).byte_offset

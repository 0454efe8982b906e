"""Samples out of many HDF5 files, as one flat index."""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from zoo.data.manifest import Manifest, read_manifest
from zoo.data.schema import Field, Schema
from zoo.data.source import Source, open_source
from zoo.data.values import bad_sample, wrong_values
from zoo.errors import DataFileError, EmptySplitError

MAX_OPEN_FILES = 32
_SUBSTITUTES_TRIED = 100
_log = logging.getLogger(__name__)


class OpenFiles:
    """The open files of this process, the least recently used closed first.

    [Note: handles never cross a fork] HDF5's state that a fork has copied reads garbage. Handles
    belong to the process id that opened them: a forked child drops what it inherited and opens its
    own, and a pickled copy carries none.
    """

    def __init__(self, max_open: int = MAX_OPEN_FILES) -> None:
        self.max_open = max_open
        self._sources: OrderedDict[Path, Source] = OrderedDict()
        self._pid = os.getpid()

    def __reduce__(self) -> tuple[type[OpenFiles], tuple[int]]:
        return OpenFiles, (self.max_open,)

    def __len__(self) -> int:
        return len(self._sources) if self._pid == os.getpid() else 0

    def get(self, path: Path, schema: Schema, dataset: str | None = None) -> Source:
        """The open file; raises what `open_source` does."""
        if self._pid != os.getpid():
            # Left open in the parent: closing here what the parent still reads helps nobody.
            self._sources, self._pid = OrderedDict(), os.getpid()
        source = self._sources.get(path)
        if source is None:
            while len(self._sources) >= self.max_open:
                self._sources.popitem(last=False)[1].close()
            source = self._sources[path] = open_source(path, schema, dataset)
        self._sources.move_to_end(path)
        return source

    def close(self) -> None:
        """Close those that this process opened."""
        if self._pid == os.getpid():
            while self._sources:
                self._sources.popitem()[1].close()


class HDF5Samples:
    """A map-style data set over the files of a manifest; sample `i` is a dict of tensors by field.

    A field of layout HWC arrives as a [C, H, W] view of what was read, which is channels-last
    memory; nothing is transposed. `zoo.data.loader.Loader` reads batches of it without copies;
    `torch.utils.data.DataLoader` works too.

    Args:
        root: folder to which the manifest's paths are relative.
        manifest: its schema says what lies in the files.
        fields: which fields to read, and which channels of them (`Field.select`): a part of the
            manifest's schema; all of it by default.
        indices: which samples, in this order; all by default. A split, or those that are not bad.
        max_open_files: handles a process.
        on_bad: what to do where a sample cannot be read: `raise`, or `substitute` the next one that
            can (a batch keeps its size, and the ranks' steps stay equal). What `verify` finds
            before training is better left out for good: `zoo.data.verify.without_bad`.
        check_values: treat NaN, infinities and labels out of range as samples that cannot be read;
            costs a pass over each sample.

    Raises:
        EmptySplitError: there is no sample.
    """

    def __init__(
        self,
        root: Path,
        manifest: Manifest,
        fields: Schema | None = None,
        indices: Sequence[int] | np.ndarray | None = None,
        max_open_files: int = MAX_OPEN_FILES,
        on_bad: Literal["raise", "substitute"] = "raise",
        check_values: bool = False,
    ) -> None:
        self.root = Path(root)
        self.manifest = manifest
        self.fields: dict[str, Field] = dict(fields or manifest.schema)
        chosen = np.arange(manifest.n_samples) if indices is None else indices
        self.indices = np.asarray(chosen, dtype=np.int64)
        self._first_samples = manifest.first_samples
        self._open = OpenFiles(max_open_files)
        self.on_bad = on_bad
        self.check_values = check_values
        if not len(self.indices):
            raise EmptySplitError(
                f"no sample in {self.root}: {len(manifest.files)} files hold {manifest.n_samples} "
                "samples and the split chose none. Expected at least one; next, generate more "
                "samples or correct the split (data.split)."
            )

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def file_of_sample(self) -> np.ndarray:
        """[len(self)] int64: position in the manifest of the file that holds each sample."""
        return np.searchsorted(self._first_samples, self.indices, side="right") - 1

    @property
    def nbytes_per_sample(self) -> int:
        """As read: only the chosen fields and channels."""
        return sum(nbytes_of(shape, dtype) for shape, dtype in self.shapes(1).values())

    def shapes(self, n_samples: int) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Shape and dtype of the buffer for so many samples, by field."""
        return {
            name: ((n_samples, *field.read_shape), np.dtype(field.dtype))
            for name, field in self.fields.items()
        }

    def where(self, index: int) -> tuple[Path, int]:
        """The file that holds sample `index`, and the sample's place in it."""
        flat = int(self.indices[index])
        number = int(np.searchsorted(self._first_samples, flat, side="right")) - 1
        return self.root / self.manifest.files[number].path, flat - int(self._first_samples[number])

    def read_into(self, index: int, buffers: Mapping[str, np.ndarray]) -> None:
        """Read sample `index` into buffers of `Field.read_shape`, by field.

        Raises:
            DataFileError: or one of its kinds, naming the file.
        """
        flat = int(self.indices[index])
        number = int(np.searchsorted(self._first_samples, flat, side="right")) - 1
        entry = self.manifest.files[number]
        source = self._open.get(self.root / entry.path, self.fields, entry.dataset)
        for name, buffer in buffers.items():
            source.read(name, flat - int(self._first_samples[number]), buffer)

    def read_batch(self, indices: Sequence[int], buffers: Mapping[str, np.ndarray]) -> None:
        """Read samples into the rows of buffers as `shapes` describes them."""
        for row, index in enumerate(indices):
            rows = {name: buffer[row] for name, buffer in buffers.items()}
            try:
                self._read_good(index, rows)
            except DataFileError as error:
                if self.on_bad == "raise":
                    raise
                self._substitute(index, rows, error)

    def _read_good(self, index: int, rows: Mapping[str, np.ndarray]) -> None:
        self.read_into(index, rows)
        for name, row in rows.items() if self.check_values else ():
            if (wrong := wrong_values(self.fields[name], row)) is not None:
                path, sample = self.where(index)
                raise bad_sample(path, sample, self.fields[name], wrong)

    def _substitute(self, index: int, rows: Mapping[str, np.ndarray], error: DataFileError) -> None:
        for step in range(1, min(len(self), _SUBSTITUTES_TRIED + 1)):
            try:
                self._read_good((index + step) % len(self), rows)
            except DataFileError:
                continue
            _log.warning("sample %d stands for %d: %s", (index + step) % len(self), index, error)
            return
        raise error

    def as_tensors(self, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Tensors that share the arrays' memory, channels in front of height and width."""
        # Imported here: processes that only read have no need of torch.
        import torch

        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return {
            name: tensor.movedim(-1, -3) if self.fields[name].layout == "HWC" else tensor
            for name, tensor in tensors.items()
        }

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        arrays = {name: np.empty(shape, dtype) for name, (shape, dtype) in self.shapes(1).items()}
        self.read_batch([index], arrays)
        return {name: tensor[0] for name, tensor in self.as_tensors(arrays).items()}

    def close(self) -> None:
        """Close this process's files; the next read opens them again."""
        self._open.close()


def nbytes_of(shape: Sequence[int], dtype: np.dtype) -> int:
    return int(np.prod(shape, dtype=np.int64)) * dtype.itemsize


def open_samples(root: Path, fields: Schema | None = None) -> HDF5Samples:
    """All samples of a folder with a manifest."""
    return HDF5Samples(root, read_manifest(root), fields)

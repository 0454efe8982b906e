"""Writes a data set as HDF5 shards with a manifest: atomic, resumable, the same bytes each time."""

from __future__ import annotations

import errno
import json
import multiprocessing as mp
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from zoo.data.manifest import MANIFEST_NAME, FileEntry, Manifest, read_manifest, sha256_of
from zoo.data.schema import Schema, schema_as_json
from zoo.errors import DataFileError, DiskFullError, SchemaMismatchError
from zoo.files import write_json, written_whole

Sample = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class ShardWriter:
    """Writes shards, one a call, from any number of processes (one shard, one process at a time).

    A finished shard has a record beside it (`.shard-00003.h5.json`) until `finish` gathers them
    into `manifest.json`; what is recorded is not written again, and what a kill left half-written
    is.
    A shard's bytes depend on its samples alone: no times, no names of machines.

    Args:
        folder: made if it is not there.
        schema: `select` is not looked at: all channels are written.
        n_samples: of the whole set; the last shard may hold fewer than `samples_per_shard`.
        chunked: one sample a chunk instead of one piece for all; needed only for `compression`.
        compression: of h5py, such as "lzf"; reading is then many times slower.
        attributes: what made the data (seed, size, ...): into every shard and the manifest. A
            folder that was begun with others is refused.
        flat: one sample a file, without an axis of samples in front.
    """

    folder: Path
    schema: Schema
    n_samples: int
    samples_per_shard: int
    chunked: bool = False
    compression: str | None = None
    attributes: Mapping[str, str | int | float] = field(default_factory=dict)
    flat: bool = False

    @property
    def n_shards(self) -> int:
        return -(-self.n_samples // self.samples_per_shard)

    def samples_of(self, shard: int) -> range:
        """Indices of the samples in it."""
        start = shard * self.samples_per_shard
        return range(start, min(start + self.samples_per_shard, self.n_samples))

    def path_of(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:05d}.h5"

    def open_shards(self) -> list[int]:
        """Shards that are still to be written.

        Raises:
            SchemaMismatchError: the folder holds shards of another data set.
        """
        if self._finished() is not None:
            return []
        return [shard for shard in range(self.n_shards) if self._recorded(shard) is None]

    def write(self, shard: int, samples: Iterable[Sample]) -> FileEntry:
        """Write one shard: as many samples as `samples_of` has, arrays as in the schema.

        Raises:
            DataFileError: too few or too many samples, or one that does not fit the schema.
            DiskFullError: no room; the shard's name is as it was.
        """
        path = self.path_of(shard)
        try:
            with written_whole(path, self._partial(shard)) as fresh:
                with h5py.File(fresh, "w", locking=False, libver="latest") as file:
                    self._fill(file, shard, samples)
                entry = FileEntry(
                    path.name, len(self.samples_of(shard)), fresh.stat().st_size, sha256_of(fresh)
                )
            record = self._record(shard)
            content = {"entry": asdict(entry), "of": self._identity()}
            write_json(record, content, beside=record.with_suffix(".partial.json"))
        except OSError as error:
            raise write_error(path, error) from error
        return entry

    def finish(self) -> Manifest:
        """Gather the records into `manifest.json` and remove them; one process calls it.

        Raises:
            DataFileError: a shard is missing.
        """
        if (manifest := self._finished()) is not None:
            return manifest
        entries = [self._recorded(shard) for shard in range(self.n_shards)]
        if missing := [shard for shard, entry in enumerate(entries) if entry is None]:
            raise DataFileError(
                f"{self.folder}: expected {self.n_shards} shards, {len(missing)} are missing "
                f"(first: {self.path_of(missing[0]).name}). Next, run the same command again."
            )
        manifest = Manifest(dict(self.schema), tuple(e for e in entries if e), self.attributes)
        manifest.save(self.folder / MANIFEST_NAME)
        for shard in range(self.n_shards):
            self._record(shard).unlink(missing_ok=True)
            self._partial(shard).unlink(missing_ok=True)
        return manifest

    def _fill(self, file: h5py.File, shard: int, samples: Iterable[Sample]) -> None:
        n_samples = len(self.samples_of(shard))
        file.attrs.update({**self.attributes, "first_sample": self.samples_of(shard).start})
        datasets = {
            name: file.create_dataset(
                field.dataset,
                field.shape if self.flat else (n_samples, *field.shape),
                field.dtype,
                chunks=(() if self.flat else (1,)) + field.shape
                if self.chunked or self.compression
                else None,
                compression=self.compression,
                track_times=False,
            )
            for name, field in self.schema.items()
        }
        n_written = 0
        for n_written, sample in enumerate(samples, start=1):
            if n_written > n_samples:
                break
            for name, dataset in datasets.items():
                dataset[... if self.flat else n_written - 1] = self._fitting(name, sample)
        if n_written != n_samples:
            got = "more" if n_written > n_samples else n_written
            raise DataFileError(
                f"{self.path_of(shard)}: expected {n_samples} samples, got {got}. Next, correct "
                "what makes them."
            )

    def _fitting(self, name: str, sample: Sample) -> np.ndarray:
        field, array = self.schema[name], np.asarray(sample.get(name))
        if array.shape != field.shape or array.dtype != np.dtype(field.dtype):
            raise DataFileError(
                f"{self.folder}: a sample's field {name} expected {field.dtype} {field.shape}, got "
                f"{array.dtype} {array.shape}. Next, correct what makes the samples, or the schema."
            )
        return array

    def _identity(self) -> dict[str, Any]:
        return {
            "schema": schema_as_json(self.schema),
            "n_samples": self.n_samples,
            "samples_per_shard": self.samples_per_shard,
            "chunked": self.chunked,
            "compression": self.compression,
            "attributes": dict(self.attributes),
        }

    def _record(self, shard: int) -> Path:
        return self.folder / f".{self.path_of(shard).name}.json"

    def _partial(self, shard: int) -> Path:
        return self.folder / f".{self.path_of(shard).stem}.partial.h5"

    def _recorded(self, shard: int) -> FileEntry | None:
        record = self._record(shard)
        if not record.exists() or not self.path_of(shard).exists():
            return None
        content = json.loads(record.read_text())
        self._require_same(content["of"])
        return FileEntry(**content["entry"])

    def _finished(self) -> Manifest | None:
        path = self.folder / MANIFEST_NAME
        if not path.exists():
            return None
        manifest = read_manifest(path)
        whole = {"schema": schema_as_json(manifest.schema), "n_samples": manifest.n_samples}
        self._require_same({**whole, "attributes": dict(manifest.attributes)})
        there = all((self.folder / entry.path).exists() for entry in manifest.files)
        return manifest if there else None

    def _require_same(self, got: Mapping[str, Any]) -> None:
        expected = self._identity()
        for key, value in got.items():
            if expected[key] != value:
                raise SchemaMismatchError(
                    f"{self.folder} holds another data set: expected {key} {expected[key]}, got "
                    f"{value}. Next, choose another folder, or delete this one."
                )


def write_error(path: Path, error: OSError) -> Exception:
    """The named error for a write that failed; HDF5 hides the errno in its text."""
    full = error.errno == errno.ENOSPC or "No space left" in str(error)
    kind = DiskFullError if full else DataFileError
    return kind(
        f"cannot write {path}: {error}. Nothing that was finished is lost. Next, "
        + ("make room there" if full else "choose a folder that can be written to")
        + " and run the same command again."
    )


def generate_shards(
    writer: ShardWriter,
    make_sample: Callable[[int], Sample],
    n_processes: int = 1,
    progress: Callable[[Iterable[Any], int], Iterator[Any]] | None = None,
) -> Manifest:
    """Write all missing shards of samples that are made by index, then the manifest.

    Args:
        make_sample: a pure function of the index; with several processes it must pickle.
        progress: wraps an iterable of so many finished shards, such as `zoo.progress.progress`.
    """
    missing = writer.open_shards()
    track = progress or (lambda done, _: iter(done))
    if n_processes > 1:
        # Not fork: HDF5 and threads of the parent do not survive it.
        context = mp.get_context("forkserver")
        with ProcessPoolExecutor(n_processes, mp_context=context) as pool:
            jobs = [pool.submit(_write_shard, writer, make_sample, shard) for shard in missing]
            for job in track(as_completed(jobs), len(jobs)):
                job.result()
    else:
        for shard in track(missing, len(missing)):
            _write_shard(writer, make_sample, shard)
    return writer.finish()


def _write_shard(
    writer: ShardWriter, make_sample: Callable[[int], Sample], shard: int
) -> FileEntry:
    return writer.write(shard, (make_sample(index) for index in writer.samples_of(shard)))

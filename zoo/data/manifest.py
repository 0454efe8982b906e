"""The list of a data set's files, with the samples, size and checksum of each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from zoo.data.schema import Field, Schema, schema_as_json, schema_from
from zoo.errors import DataFileError, EmptySplitError, SchemaMismatchError
from zoo.files import write_json

MANIFEST_NAME = "manifest.json"
_FORMAT = "zoo.manifest"
_VERSION = 1
_CHUNK_NBYTES = 8 << 20


@dataclass(frozen=True)
class FileEntry:
    """One file: path relative to the manifest's folder; sha256 where it is known.

    `dataset` stands for the schema's own path where the file was named as `FILE.h5:DATASET`.
    """

    path: str
    n_samples: int
    nbytes: int
    sha256: str | None = None
    dataset: str | None = None


@dataclass(frozen=True)
class Manifest:
    """Files in the order in which their samples are counted, and the schema that all follow."""

    schema: dict[str, Field]
    files: tuple[FileEntry, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def n_samples(self) -> int:
        return sum(entry.n_samples for entry in self.files)

    @property
    def nbytes(self) -> int:
        return sum(entry.nbytes for entry in self.files)

    @property
    def first_samples(self) -> np.ndarray:
        """[n_files + 1] int64: the index of each file's first sample, and the number of all."""
        return np.cumsum([0, *(entry.n_samples for entry in self.files)], dtype=np.int64)

    @property
    def file_of_sample(self) -> np.ndarray:
        """[n_samples] int64: in which file each sample lies."""
        return np.repeat(np.arange(len(self.files)), [entry.n_samples for entry in self.files])

    def save(self, path: Path) -> None:
        """Write it, whole or not at all."""
        write_json(
            path,
            {
                "format": _FORMAT,
                "version": _VERSION,
                "schema": schema_as_json(self.schema),
                "attributes": dict(self.attributes),
                "files": [asdict(entry) for entry in self.files],
            },
        )


def read_manifest(path: Path) -> Manifest:
    """What `Manifest.save` wrote; `path` is the file, or its folder.

    Raises:
        DataFileError: there is none, or it is no manifest.
    """
    path = path / MANIFEST_NAME if path.is_dir() else path
    try:
        content = json.loads(path.read_text())
        if (content["format"], content["version"]) != (_FORMAT, _VERSION):
            raise ValueError(f"format {content['format']} version {content['version']}")
        entries = tuple(FileEntry(**entry) for entry in content["files"])
        return Manifest(schema_from(content["schema"]), entries, content["attributes"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataFileError(
            f"no usable manifest at {path}: expected {_FORMAT} version {_VERSION}, got "
            f"{type(error).__name__}: {error}. Next, make the data set again, or index its files "
            f"with `python -m zoo.data.verify {path.parent} --write`."
        ) from error


def index_files(root: Path, names: Iterable[str], schema: Schema) -> Manifest:
    """A manifest of foreign files: each is opened once for its shapes, and not read.

    Args:
        names: paths relative to `root`, or `FILE.h5:DATASET` where the schema has one field.

    Raises:
        EmptySplitError: there is no file.
        DataFileError: one is missing or damaged. SchemaMismatchError: or of another schema.
    """
    from zoo.data.source import open_source  # needs h5py, which readers of manifests do not

    entries = []
    for name in names:
        path, dataset = split_address(name)
        with open_source(root / path, schema, dataset) as source:
            entries.append(
                FileEntry(path, source.n_samples, (root / path).stat().st_size, None, dataset)
            )
    if not entries:
        raise EmptySplitError(
            f"no data file in {root}. Expected at least one; next, generate or copy the data set, "
            "or correct data.root and data.files."
        )
    return Manifest(dict(schema), tuple(entries))


def split_address(name: str) -> tuple[str, str | None]:
    """A file, and the dataset in it if one is named.

    >>> split_address("a/b.h5:climate/data")
    ('a/b.h5', 'climate/data')
    >>> split_address("a/b.h5")
    ('a/b.h5', None)
    """
    file, colon, dataset = name.partition(":")
    return file, dataset if colon else None


def cached_manifest(cache: Path, build: Callable[[], Manifest], schema: Schema) -> Manifest:
    """The manifest in `cache`, or built and stored there. One process calls it; others read after.

    Raises:
        SchemaMismatchError: the cached one follows another schema.
    """
    if not cache.exists():
        build().save(cache)
    manifest = read_manifest(cache)
    require_schema(manifest, schema, cache)
    return manifest


def require_schema(manifest: Manifest, schema: Schema, path: Path) -> None:
    """Raise SchemaMismatchError unless the manifest has all fields of `schema`, and alike."""
    expected, got = schema_as_json(schema), schema_as_json(manifest.schema)
    for name, described in expected.items():
        # Files do not know their channels' names: a schema may add them.
        facts = {k: v for k, v in described.items() if k in ("dataset", "shape", "dtype")}
        if name not in got or any(got[name][key] != value for key, value in facts.items()):
            raise SchemaMismatchError(
                f"{path} is of another schema: field {name} expected {facts}, got "
                f"{got.get(name, 'nothing')}. Next, correct data.schema or data.root; or, where "
                f"the files have changed, delete {path}."
            )


def sha256_of(path: Path) -> str:
    """Of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_NBYTES):
            digest.update(chunk)
    return digest.hexdigest()


def matching(root: Path, patterns: Sequence[str]) -> list[str]:
    """Names relative to `root` that match, sorted; an address `FILE.h5:DATASET` may have stars."""
    names: list[str] = []
    for pattern in patterns:
        glob, dataset = split_address(pattern)
        found = sorted(str(path.relative_to(root)) for path in root.glob(glob))
        names += [name if dataset is None else f"{name}:{dataset}" for name in found]
    return names

"""Files of CAM5's layout, as S6 and DeepCAM have them: what lies in them, and where."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import h5py

from zoo.data.climate_channels import CHANNELS, CLASS_NAMES
from zoo.data.climate_statistics import channels_of
from zoo.data.manifest import Manifest, index_files
from zoo.data.schema import Field, Schema
from zoo.data.source import open_hdf5
from zoo.errors import ChannelError, EmptySplitError, SchemaMismatchError
from zoo.progress import progress

LABELS = ("labels_0", "labels_1", "labels")


def describe_files(root: Path, names: Sequence[str]) -> Manifest:
    """A manifest of foreign files; each is opened for its shapes and its channels' names.

    Raises:
        EmptySplitError: there is none. DataFileError: one is damaged.
        SchemaMismatchError: one has other datasets, or another grid, than the first.
        ChannelError: one has other channels, or in another order, than the first.
    """
    if not names:
        raise EmptySplitError(
            f"no snapshot in {root}. Expected files such as data-2000-01-01-00-0.h5; next, correct "
            "data.path or data.files, or set data.size=tiny to generate some."
        )
    schema = schema_of(root / names[0])
    manifest = index_files(root, progress(names, len(names), "Indexing"), schema)
    expected = schema["fields"].channels
    for entry in progress(manifest.files, len(manifest.files), "Comparing channels"):
        with open_hdf5(root / entry.path) as file:
            got = _channels_of(file, root / entry.path, len(expected))
        if got != expected:
            raise ChannelError(
                f"{root / entry.path}: expected the channels {list(expected)}, as "
                f"{root / names[0]} has them, got {list(got)}. Next, put files of each order in a "
                "folder of its own; which are read, and in which order, is data.channels' to say."
            )
    return manifest


def schema_of(path: Path) -> Schema:
    """`fields` and all labels of a file: one snapshot [H, W, C], or many [N, H, W, C].

    Raises:
        SchemaMismatchError: it has no `climate/data`, or labels of another grid.
    """
    with open_hdf5(path) as file:
        data = file.get("climate/data")
        if not isinstance(data, h5py.Dataset) or data.ndim not in (3, 4):
            got = "none" if data is None else f"{data}"
            raise SchemaMismatchError(
                f"{path}: expected /climate/data of [H, W, C] or [N, H, W, C], got {got}. Next, "
                "correct data.files."
            )
        names = _channels_of(file, path, data.shape[-1])
        schema = {"fields": Field("climate/data", data.shape[-3:], str(data.dtype), "HWC", names)}
        for name in LABELS:
            if (found := file.get(f"climate/{name}")) is not None:
                schema[name] = _label_field(path, found, data)
    return schema


def _label_field(path: Path, label: h5py.Dataset, data: h5py.Dataset) -> Field:
    """[H, W]; [K, H, W] in older files."""
    dataset, dtype = label.name.lstrip("/"), str(label.dtype)
    shape = label.shape if data.ndim == 3 else label.shape[1:]
    if shape[-2:] != data.shape[-3:-1] or len(shape) not in (2, 3):
        raise SchemaMismatchError(
            f"{path}: {label.name} expected [H, W] or [K, H, W] on the grid of /climate/data, "
            f"{data.shape[-3:-1]}, got {label.shape}. Next, make the labels on this grid "
            "(zoo.data.climate_labels)."
        )
    if len(shape) == 2:
        return Field(dataset, shape, dtype, "HW", n_classes=len(CLASS_NAMES))
    planes = tuple(str(plane) for plane in range(shape[0]))
    return Field(dataset, shape, dtype, "CHW", planes, n_classes=len(CLASS_NAMES))


def _channels_of(file: h5py.File, path: Path, n_channels: int) -> tuple[str, ...]:
    listed = channels_of(file["climate"])
    names = listed or (CHANNELS if n_channels == len(CHANNELS) else ())
    if len(names) != n_channels:
        got = f"{len(names)} names, {list(names)}" if names else "no names"
        raise ChannelError(
            f"{path}: expected a name for each of its {n_channels} channels in /climate/channels, "
            f"got {got}. Next, write them there."
        )
    return tuple(names)

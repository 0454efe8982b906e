"""The photographs in one HDF5 file: written once, checked, read window by window.

Layout: root attributes `layout` and `layout_version`; datasets `/<split>/<name>` of [H, W, 3] uint8
with the attributes `licence` and `source`. Gray pictures are repeated to three channels.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from zoo.data.photograph_list import PHOTOGRAPHS, Photograph
from zoo.errors import DataFileError
from zoo.files import written_whole

LAYOUT = "zoo.photographs"
LAYOUT_VERSION = 1


def ensure_photographs(path: Path) -> None:
    """Write the file if it is not there, then check it. Any number of processes may do so at once.

    Raises:
        DataFileError: the file is damaged or foreign, or its folder cannot be written.
    """
    if not path.exists():
        try:
            with written_whole(path) as fresh:
                _write(fresh)
        except OSError as error:
            raise DataFileError(
                f"cannot write the photographs to {path}: {error}. Expected a folder that can be "
                "written to; next, choose one with data.path=FILE.h5."
            ) from error
    with PhotographFile(path) as file:
        file.check()


def _write(path: Path) -> None:
    with h5py.File(path, "w", locking=False) as file:
        file.attrs.update(layout=LAYOUT, layout_version=LAYOUT_VERSION)
        for photograph in PHOTOGRAPHS:
            dataset = file.create_dataset(_key(photograph), data=_load(photograph))
            dataset.attrs.update(licence=photograph.licence, source=photograph.source)


def _load(photograph: Photograph) -> np.ndarray:
    # Imported where needed: skimage takes a second, and only the first run ever needs it.
    import skimage.data

    pixels = getattr(skimage.data, photograph.loader)()
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)


def _key(photograph: Photograph) -> str:
    return f"{photograph.split}/{photograph.name}"


class PhotographFile:
    """A read-only view of the file that may be copied to any process.

    The handle is opened at the first read of each process and left out of pickles: HDF5 state that
    is carried over a fork reads garbage. Locks are off, since many file systems of clusters have
    none and nobody writes to a finished file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: h5py.File | None = None
        self._opened_by_pid: int | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_file": None, "_opened_by_pid": None}

    def __enter__(self) -> PhotographFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close this process's handle; the next read opens it again."""
        if self._file is not None and self._opened_by_pid == os.getpid():
            self._file.close()
        self._file = None

    def size_px(self, split: str, name: str) -> tuple[int, int]:
        """Height and width of a picture."""
        height_px, width_px, _ = self._handle[f"{split}/{name}"].shape
        return height_px, width_px

    def read(self, split: str, name: str, rows: slice, cols: slice) -> np.ndarray:
        """A window of a picture, [h, w, 3] uint8.

        Raises:
            DataFileError: the file is missing, damaged or foreign.
        """
        try:
            return self._handle[f"{split}/{name}"][rows, cols]
        except (KeyError, OSError) as error:
            raise self._error(f"no readable dataset /{split}/{name} ({error})") from error

    def check(self) -> None:
        """Raise DataFileError unless the file has the layout that this module writes."""
        attributes = self._handle.attrs
        got = (attributes.get("layout"), attributes.get("layout_version"))
        if got != (LAYOUT, LAYOUT_VERSION):
            raise self._error(f"layout and version {got}")
        for photograph in PHOTOGRAPHS:
            self._check_dataset(_key(photograph))

    def _check_dataset(self, key: str) -> None:
        dataset = self._handle.get(key)
        if not isinstance(dataset, h5py.Dataset):
            raise self._error(f"no dataset /{key}")
        if dataset.dtype != np.uint8 or dataset.ndim != 3 or dataset.shape[2] != 3:
            raise self._error(f"/{key} of {dataset.dtype} {dataset.shape}, not uint8 [H, W, 3]")

    @property
    def _handle(self) -> h5py.File:
        if self._file is None or self._opened_by_pid != os.getpid():
            try:
                self._file = h5py.File(self.path, "r", locking=False)
            except OSError as error:
                raise self._error(str(error)) from error
            self._opened_by_pid = os.getpid()
        return self._file

    def _error(self, got: str) -> DataFileError:
        return DataFileError(
            f"{self.path} is not a usable file of photographs. Expected an HDF5 file of layout "
            f"{LAYOUT!r} version {LAYOUT_VERSION}; got: {got}. Next, delete the file, and the next "
            "run writes it anew, or name another one with data.path=FILE.h5."
        )

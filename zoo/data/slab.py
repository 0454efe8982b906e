"""Memory that a loading process fills and the training process reads, without a copy between."""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from zoo.errors import DiskFullError

_ALIGNMENT_NBYTES = 4096
_SHARED_MEMORY = Path("/dev/shm")

Shapes = Mapping[str, tuple[tuple[int, ...], np.dtype]]


class Slab:
    """A block of shared memory, known by a file descriptor; gone when its last process is.

    Args:
        fd: of another process's slab; None makes a new one.

    Raises:
        DiskFullError: there is too little shared memory. Without this check the first write past
            it would kill the process with a bus error.
    """

    def __init__(self, nbytes: int, fd: int | None = None) -> None:
        self.nbytes = nbytes
        self.fd = _new_file(nbytes) if fd is None else fd
        flags = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)
        self._map = mmap.mmap(self.fd, nbytes, flags=flags)

    @property
    def address(self) -> int:
        """Where this process sees it."""
        return np.frombuffer(self._map, np.uint8).ctypes.data

    def arrays(
        self, shapes: Shapes, on_release: Callable[[], None] | None = None
    ) -> dict[str, np.ndarray]:
        """Arrays in this memory, one behind the other.

        Args:
            on_release: called when the last view of them, arrays or tensors, is gone.
        """
        base = np.frombuffer(self._map, np.uint8)
        arrays, start = {}, 0
        for name, (shape, dtype) in shapes.items():
            nbytes = _nbytes(shape, dtype)
            arrays[name] = base[start : start + nbytes].view(dtype).reshape(shape)
            start = _aligned(start + nbytes)
        if on_release is not None:
            weakref.finalize(base, on_release).atexit = False
        return arrays

    def close(self) -> None:
        """Forget the descriptor; the memory stays until its last view is gone."""
        os.close(self.fd)


def nbytes_of_shapes(shapes: Shapes) -> int:
    """Bytes that a slab needs for these arrays."""
    return sum(_aligned(_nbytes(shape, dtype)) for shape, dtype in shapes.values())


def _new_file(nbytes: int) -> int:
    try:
        if hasattr(os, "memfd_create"):
            fd = os.memfd_create("samples", os.MFD_CLOEXEC)
        else:
            folder = _SHARED_MEMORY if _SHARED_MEMORY.is_dir() else None
            with tempfile.TemporaryFile(dir=folder) as file:
                fd = os.dup(file.fileno())
        os.ftruncate(fd, nbytes)
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(fd, 0, nbytes)
    except OSError as error:
        raise DiskFullError(
            f"cannot get {nbytes} bytes of shared memory for a batch: {error}. Next, use fewer "
            "workers (data.num_workers), a smaller data.prefetch or batch, or a machine or "
            "container with more shared memory."
        ) from error
    return fd


def _nbytes(shape: tuple[int, ...], dtype: np.dtype) -> int:
    return int(np.prod(shape, dtype=np.int64)) * dtype.itemsize


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT_NBYTES) * _ALIGNMENT_NBYTES

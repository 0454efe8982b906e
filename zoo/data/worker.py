"""The process that reads batches into slabs. It needs neither torch nor Lightning."""

from __future__ import annotations

import os
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from typing import Any, NamedTuple, Protocol

import numpy as np

from zoo.data.slab import Shapes, Slab
from zoo.errors import LoaderError, UserError

_LOOK_AFTER_PARENT_S = 5.0


class BatchReader(Protocol):
    """A data set that reads batches into buffers, such as `zoo.data.hdf5.HDF5Samples`."""

    def __len__(self) -> int: ...

    def shapes(self, n_samples: int) -> Shapes: ...

    def read_batch(self, indices: Sequence[int], buffers: dict[str, np.ndarray]) -> None: ...

    def as_tensors(self, arrays: dict[str, np.ndarray]) -> dict[str, Any]: ...

    def close(self) -> None: ...


class Task(NamedTuple):
    """Read these samples into that slab; `new_nbytes` where its descriptor follows."""

    ticket: int
    slab: int
    indices: tuple[int, ...]
    new_nbytes: int | None


class Done(NamedTuple):
    """The answer to a task; `error` if it failed."""

    ticket: int
    error: UserError | None


def run_worker(connection: Connection, dataset: BatchReader) -> None:
    """Answer tasks until None comes, or the trainer is gone."""
    parent = os.getppid()
    slabs: dict[int, Slab] = {}
    try:
        while _waits(connection, parent):
            task = connection.recv()
            if task is None:
                break
            if task.new_nbytes is not None:
                slabs[task.slab] = Slab(task.new_nbytes, recv_handle(connection))
            connection.send(Done(task.ticket, _read(dataset, task, slabs[task.slab])))
    except (EOFError, ConnectionError, KeyboardInterrupt):
        pass  # the trainer has ended, or is being interrupted: it says so itself
    finally:
        dataset.close()


def _waits(connection: Connection, parent: int) -> bool:
    """True when a task is there; False when the process that wants them is gone."""
    while not connection.poll(_LOOK_AFTER_PARENT_S):
        # A forked sibling may hold the pipe's other end open, so that no end of file comes.
        if os.getppid() != parent:
            return False
    return True


def _read(dataset: BatchReader, task: Task, slab: Slab) -> UserError | None:
    try:
        dataset.read_batch(task.indices, slab.arrays(dataset.shapes(len(task.indices))))
    except UserError as error:
        return error
    except Exception:
        return LoaderError(
            f"a loading process failed on the samples {list(task.indices)}:\n"
            f"{traceback.format_exc()}Next, correct the data set's read_batch."
        )
    return None

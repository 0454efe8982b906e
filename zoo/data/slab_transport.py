"""Batches by worker processes through slabs, in order."""

from __future__ import annotations

import multiprocessing as mp
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.reduction import send_handle
from time import monotonic

import torch

from zoo.data.slab import Slab, nbytes_of_shapes
from zoo.data.worker import BatchReader, Done, Task, run_worker
from zoo.errors import LoaderError, UserError

_LOOK_AFTER_WORKER_S = 1.0
_STOP_S = 5.0


class SlabPool:
    """Slabs that one process or this rank itself fills.

    A slab is free again when nobody holds a view of its batch any more. If all are held, a new one
    is made: who keeps batches gets memory, not wrong data.

    Args:
        pin: lock the pages for CUDA: copies to the device are then asynchronous, and a slab is not
            filled again before those that were queued have been done.
    """

    def __init__(self, pin: bool) -> None:
        self.pin = pin
        self._slabs: list[Slab] = []
        self._free: deque[tuple[Slab, torch.cuda.Event | None]] = deque()

    def take(self, nbytes: int) -> tuple[Slab, bool]:
        """A slab of at least this size, and whether it is new."""
        for _ in range(len(self._free)):
            slab, copied = self._free.popleft()
            if slab.nbytes >= nbytes and (copied is None or copied.query()):
                return slab, False
            self._free.append((slab, copied))
        slab = Slab(nbytes)
        if self.pin:
            _pin(slab)
        self._slabs.append(slab)
        return slab, True

    def release(self, slab: Slab) -> None:
        """Nobody holds a view of it any more."""
        copied = None
        if self.pin:
            copied = torch.cuda.Event()
            copied.record()
        self._free.append((slab, copied))

    def close(self) -> None:
        """Forget all; the memory of those that somebody still views goes with the last view."""
        for slab in self._slabs:
            if self.pin:
                torch.cuda.cudart().cudaHostUnregister(slab.address)
            slab.close()
        self._slabs.clear()


class _Worker:
    """One process, its pipe, and the slabs that only it fills."""

    def __init__(self, dataset: BatchReader, start_method: str, pin: bool) -> None:
        context = mp.get_context(start_method)
        self.connection, theirs = context.Pipe(duplex=True)
        self.process = context.Process(target=run_worker, args=(theirs, dataset), daemon=True)
        self.process.start()
        theirs.close()
        self.pool = SlabPool(pin)
        self.tasks: deque[tuple[int, Slab]] = deque()

    def send(self, ticket: int, indices: Sequence[int], nbytes: int) -> None:
        slab, is_new = self.pool.take(nbytes)
        self.tasks.append((ticket, slab))
        self.connection.send(Task(ticket, slab.fd, tuple(indices), nbytes if is_new else None))
        if is_new:
            send_handle(self.connection, slab.fd, self.process.pid)

    def stop(self) -> None:
        # It may have died, which is what is wanted.
        with suppress(OSError, ValueError):
            self.connection.send(None)
        self.process.join(_STOP_S)
        if self.process.is_alive():
            self.process.kill()
            self.process.join(_STOP_S)
        self.connection.close()
        self.pool.close()


class SlabTransport:
    """Lasts over epochs: the processes start once. `stop` ends them."""

    def __init__(
        self,
        dataset: BatchReader,
        num_workers: int,
        prefetch: int,
        start_method: str,
        stall_timeout_s: float,
        pin: bool,
    ) -> None:
        self._dataset = dataset
        self._prefetch = prefetch
        self._stall_timeout_s = stall_timeout_s
        self._workers = [_Worker(dataset, start_method, pin) for _ in range(num_workers)]
        self._ticket = 0

    def batches(self, lists: Sequence[Sequence[int]]) -> Iterator[dict[str, torch.Tensor]]:
        """The samples of each list of indices, in order.

        Raises:
            LoaderError: a worker died, or did not answer within `stall_timeout_s`. UserError:
                what a data set has raised in it.
        """
        self._drop_pending()
        todo, asked = deque(lists), deque[tuple[_Worker, int]]()
        while todo or asked:
            while todo and (worker := self._idlest()) is not None:
                asked.append((worker, len(todo[0])))
                self._ask(worker, todo.popleft())
            worker, n_samples = asked.popleft()
            yield self._collect(worker, n_samples)

    def stop(self) -> None:
        """End the processes; batches that are held stay valid."""
        for worker in self._workers:
            worker.stop()

    def _idlest(self) -> _Worker | None:
        worker = min(self._workers, key=lambda each: len(each.tasks))
        return worker if len(worker.tasks) < self._prefetch else None

    def _ask(self, worker: _Worker, indices: Sequence[int]) -> None:
        self._ticket += 1
        nbytes = nbytes_of_shapes(self._dataset.shapes(len(indices)))
        try:
            worker.send(self._ticket, indices, nbytes)
        except (BrokenPipeError, ConnectionError):
            raise self._died(worker) from None

    def _collect(self, worker: _Worker, n_samples: int) -> dict[str, torch.Tensor]:
        error, slab = self._answer(worker)
        if error is not None:
            worker.pool.release(slab)
            raise error
        shapes = self._dataset.shapes(n_samples)
        release = partial(worker.pool.release, slab)
        return self._dataset.as_tensors(slab.arrays(shapes, release))

    def _answer(self, worker: _Worker) -> tuple[UserError | None, Slab]:
        deadline_s = monotonic() + self._stall_timeout_s
        while not worker.connection.poll(_LOOK_AFTER_WORKER_S):
            if not worker.process.is_alive() and not worker.connection.poll(0):
                raise self._died(worker)
            if monotonic() > deadline_s:
                raise LoaderError(
                    f"a loading process (pid {worker.process.pid}) has not answered for "
                    f"{self._stall_timeout_s:g} s. Next, look whether its file system still "
                    "answers, or give it longer with data.stall_timeout_s."
                )
        try:
            done: Done = worker.connection.recv()
        except (EOFError, ConnectionError):
            raise self._died(worker) from None
        ticket, slab = worker.tasks.popleft()
        assert done.ticket == ticket, (done, ticket)
        return done.error, slab

    def _died(self, worker: _Worker) -> LoaderError:
        worker.process.join(_STOP_S)
        code = worker.process.exitcode
        hint = "it was killed, often for want of memory" if code == -9 else "its message is above"
        return LoaderError(
            f"a loading process (pid {worker.process.pid}) died with exit code {code}: {hint}. "
            "Next, use fewer workers or a smaller data.prefetch, or data.num_workers=0 to see the "
            "error in the rank itself."
        )

    def _drop_pending(self) -> None:
        """Wait for what an earlier pass had asked for and nobody wants any more."""
        for worker in self._workers:
            while worker.tasks:
                worker.pool.release(self._answer(worker)[1])


class InProcess:
    """As `SlabTransport`, in the rank itself: no overlap with training, nothing to start."""

    def __init__(self, dataset: BatchReader, pin: bool) -> None:
        self._dataset = dataset
        self._pool = SlabPool(pin)

    def batches(self, lists: Sequence[Sequence[int]]) -> Iterator[dict[str, torch.Tensor]]:
        """The samples of each list of indices, in order; raises what the data set does."""
        for indices in lists:
            yield self._read(indices)

    def stop(self) -> None:
        """Close the files; batches that are held stay valid."""
        self._dataset.close()
        self._pool.close()

    def _read(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        shapes = self._dataset.shapes(len(indices))
        slab, _ = self._pool.take(nbytes_of_shapes(shapes))
        arrays = slab.arrays(shapes, partial(self._pool.release, slab))
        self._dataset.read_batch(indices, arrays)
        return self._dataset.as_tensors(arrays)


def _pin(slab: Slab) -> None:
    """Lock the pages, so that copies to the device need no staging and run asynchronously."""
    error = torch.cuda.cudart().cudaHostRegister(slab.address, slab.nbytes, 0)
    if int(error) != 0:
        raise LoaderError(
            f"CUDA cannot pin {slab.nbytes} bytes of shared memory (error {int(error)}). Next, "
            "raise the limit of locked memory (`ulimit -l`), or set data.pin=false."
        )

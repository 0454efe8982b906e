"""A loader that knows its place: batches of a rank, resumable in the middle of an epoch."""

from __future__ import annotations

import multiprocessing as mp
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader

from zoo.data.sampler import EpochBatches, ExactBatches
from zoo.data.slab_transport import InProcess, SlabTransport
from zoo.errors import UserError

Batch = Any
START_METHODS = ("forkserver", "spawn", "fork")


@dataclass
class Counters:
    """Since the loader was made, on this rank."""

    n_batches: int = 0
    n_samples: int = 0
    nbytes: int = 0
    wait_s: float = 0.0


class Transport(Protocol):
    """Brings the samples of lists of keys, in order."""

    def batches(self, lists: Sequence[Sequence[Any]]) -> Iterator[Batch]: ...

    def stop(self) -> None: ...


class Loader:
    """Batches of one rank, by `batches`; Lightning and plain loops iterate it like a DataLoader.

    A data set with `read_batch` (`HDF5Samples`) is read into shared memory, without a copy or a
    pickle between worker and trainer; its batches are dicts of tensors, and hold besides the fields
    `index`, [B] int64: the samples' indices. Any other map-style data set goes through
    `torch.utils.data.DataLoader`, collated as there.

    The position counts batches that were handed out, not those that workers have read ahead.
    Lightning stores it in checkpoints and brings it back (`state_dict`, `load_state_dict`,
    `sampler.set_epoch`); a plain loop does so itself:

        for epoch in range(loader.sampler.epoch, n_epochs):
            loader.sampler.set_epoch(epoch)
            for batch in loader:
                ...

    Args:
        num_workers: processes that read ahead; 0 reads in the rank itself.
        prefetch: batches that each worker reads ahead, 1 or more.
        start_method: of the workers. forkserver and spawn inherit no handle, lock or thread; fork
            is there for programs that cannot be imported again.
        pin: lock the buffers' pages for CUDA; None where CUDA is there.
        agree: called with each batch's error or None, on every rank, and raises where any rank
            has one; see `zoo.data.agreement.raise_together`.
        dummy: give the first batch again and again: the step's time without reading.
        stall_timeout_s: the longest wait for a worker.

    Raises:
        UserError: an argument is out of range.
    """

    def __init__(
        self,
        dataset: Any,
        batches: EpochBatches | ExactBatches,
        *,
        num_workers: int = 0,
        prefetch: int = 2,
        start_method: str = "forkserver",
        pin: bool | None = None,
        agree: Callable[[UserError | None], None] | None = None,
        dummy: bool = False,
        stall_timeout_s: float = 600.0,
    ) -> None:
        if start_method not in START_METHODS or num_workers < 0 or prefetch < 1:
            raise UserError(
                "expected num_workers >= 0, prefetch >= 1 and start_method one of "
                f"{START_METHODS}, got {num_workers}, {prefetch} and {start_method!r}. Next, "
                "correct them in data."
            )
        self.dataset = dataset
        self.sampler = batches
        # Lightning asks for both, to see whether a validation is shuffled.
        self.batch_sampler = None
        self.batch_size = batches.batch_size
        self.num_workers = num_workers
        self.prefetch = prefetch
        self.start_method = start_method
        self.pin = torch.cuda.is_available() if pin is None else pin
        self.agree = agree
        self.dummy = dummy
        self.stall_timeout_s = stall_timeout_s
        self.counters = Counters()
        self._reads_batches = hasattr(dataset, "read_batch")
        self._transport: Transport | None = None
        self._loaded = False
        self._pass = 0

    def __len__(self) -> int:
        """Steps of a whole epoch, also where it was resumed in the middle."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        """Batches from the position of a loaded state, or from the epoch's beginning.

        Nothing is read before the first one is asked for: Lightning makes an iterator before it
        says which epoch it is.
        """
        self._pass += 1
        return self._batches(self._pass)

    def state_dict(self) -> dict[str, Any]:
        """Where this epoch stands: plain numbers, the same on every rank."""
        return self.sampler.state_dict() if isinstance(self.sampler, EpochBatches) else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The next iterator begins there, unless `set_epoch` names another epoch first."""
        if isinstance(self.sampler, EpochBatches):
            self.sampler.load_state_dict(state)
            self._loaded = True

    def close(self) -> None:
        """End the workers and close the files; iterating again starts new ones."""
        self._pass += 1
        if self._transport is not None:
            self._stopper()
            self._transport = None

    def _batches(self, number: int) -> Iterator[Batch]:
        if not self._loaded:
            self.sampler.rewind()
        self._loaded = False
        lists = self.sampler.batches_left()
        source = self._batches_of(lists)
        for indices in lists:
            if number != self._pass:
                raise RuntimeError("expected one iterator of a Loader at a time, got a second one")
            start_s = perf_counter()
            batch = self._next(source)
            self._count(batch, len(indices), perf_counter() - start_s)
            if self._reads_batches:
                batch["index"] = torch.from_numpy(indices)
            self.sampler.advance()
            yield batch
            # Its buffer is free as soon as the caller has let go of it.
            del batch

    def _batches_of(self, lists: Sequence[np.ndarray]) -> Iterator[Batch]:
        if self._transport is None:
            self._transport = self._start()
            # Not at exit alone: whoever forgets `close` must not leave processes behind.
            self._stopper = weakref.finalize(self, self._transport.stop)
        keys = [self.sampler.keys(indices) for indices in lists]
        if not self.dummy:
            return self._transport.batches(keys)
        return _again_and_again(self._transport, keys)

    def _next(self, source: Iterator[Batch]) -> Batch:
        error, batch = None, None
        try:
            batch = next(source)
        except UserError as raised:
            error = raised
        if self.agree is not None:
            self.agree(error)
        if error is not None:
            raise error
        return batch

    def _count(self, batch: Batch, n_samples: int, wait_s: float) -> None:
        self.counters.n_batches += 1
        self.counters.n_samples += n_samples
        self.counters.nbytes += nbytes_of_batch(batch)
        self.counters.wait_s += wait_s

    def _start(self) -> Transport:
        if not self._reads_batches:
            return TorchTransport(self)
        if self.num_workers == 0:
            return InProcess(self.dataset, self.pin)
        return SlabTransport(
            self.dataset,
            self.num_workers,
            self.prefetch,
            self.start_method,
            self.stall_timeout_s,
            self.pin,
        )


class TorchTransport:
    """Any map-style data set, by torch's DataLoader; its workers last over epochs."""

    def __init__(self, loader: Loader) -> None:
        workers: dict[str, Any] = {}
        if loader.num_workers:
            workers = {
                "multiprocessing_context": mp.get_context(loader.start_method),
                "persistent_workers": True,
                "prefetch_factor": loader.prefetch,
                "timeout": loader.stall_timeout_s,
            }
        self._lists = _Lists()
        self._loader: DataLoader[Any] | None = DataLoader(
            loader.dataset,
            batch_sampler=self._lists,
            num_workers=loader.num_workers,
            pin_memory=loader.pin,
            **workers,
        )

    def batches(self, lists: Sequence[Sequence[Any]]) -> Iterator[Batch]:
        """See `Transport`."""
        assert self._loader is not None
        self._lists.lists = lists
        return iter(self._loader)

    def stop(self) -> None:
        """End the workers."""
        # Torch ends them when the iterator goes, which the loader holds.
        self._loader = None


class _Lists:
    """A batch sampler whose batches may be exchanged while the workers that it feeds live on."""

    lists: Sequence[Sequence[Any]] = ()

    def __iter__(self) -> Iterator[Sequence[Any]]:
        return iter(self.lists)

    def __len__(self) -> int:
        return len(self.lists)


def _again_and_again(transport: Transport, keys: Sequence[Sequence[Any]]) -> Iterator[Batch]:
    batch = next(transport.batches(keys[:1]))
    for _ in keys:
        yield dict(batch) if isinstance(batch, dict) else batch


def nbytes_of_batch(batch: Batch) -> int:
    """Bytes of all tensors in nested dicts, tuples and lists."""
    if isinstance(batch, torch.Tensor):
        return batch.nbytes
    if isinstance(batch, dict):
        batch = list(batch.values())
    return sum(map(nbytes_of_batch, batch)) if isinstance(batch, list | tuple) else 0

"""How a filled bucket's gradients become their mean over the ranks."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist

from lightning_gradsched.runtime.bucket import Bucket
from lightning_gradsched.runtime.collectives import AllReduce, Work


class Transport(Protocol):
    """Sends buckets; all ranks send the same ones in the same order."""

    # Whether counts must not ride in `flat`, because something else than the engine reads it.
    counts_apart: bool

    def send(self, bucket: Bucket, *, is_last: bool) -> Work:
        """Begin to average; once the work is waited for, ``bucket`` can publish.

        ``is_last``: no other bucket follows in this backward.
        """
        ...


class AllReduceTransport:
    """Divides by the number of ranks, then sums, as DDP does: what is summed cannot overflow."""

    counts_apart = False

    def __init__(self, network: AllReduce) -> None:
        self._network = network

    @torch.no_grad()
    def send(self, bucket: Bucket, *, is_last: bool) -> Work:
        bucket.flat.mul_(1.0 / self._network.world_size)
        return with_counts(bucket, self._network.all_reduce(bucket.flat), self._network)


class CastTransport:
    """Casts to ``dtype``, divides there, sums, and casts back: as DDP's ``fp16_compress_hook``.

    What ``dtype`` cannot hold is inf from the cast on, and so on every rank. Counts ride along
    exactly: they are asked for zero or not, and no sum of shares rounds to zero.
    """

    counts_apart = False

    def __init__(self, network: AllReduce, dtype: torch.dtype) -> None:
        self._network = network
        self._dtype = dtype

    @torch.no_grad()
    def send(self, bucket: Bucket, *, is_last: bool) -> Work:
        pairs = torch.view_as_real(bucket.flat) if bucket.flat.is_complex() else bucket.flat
        wire = pairs.to(self._dtype)
        if wire is not pairs:
            bucket.result = wire
        work = self._network.all_reduce(wire.div_(self._network.world_size))
        return with_counts(bucket, work, self._network)


class Works(dist.Work):
    """Several works as one; the last of them ends it."""

    def __init__(self, works: Sequence[Any]) -> None:
        super().__init__()
        self._works = works

    def wait(self, timeout: timedelta | None = None) -> bool:
        """``timeout`` is for each of them; None: their own."""
        for work in self._works:
            work.wait() if timeout is None else work.wait(timeout)
        return True

    def is_completed(self) -> bool:
        return all(work.is_completed() for work in self._works)

    def get_future(self) -> Any:
        return self._works[-1].get_future()


def with_counts(bucket: Bucket, work: Work, network: AllReduce) -> Work:
    """``work``, and the sum of the counts of ``bucket`` too if they do not ride in it."""
    if not bucket.counts_apart:
        return work
    return Works([work, network.all_reduce(bucket.tail)])

"""The one door to torch.distributed: every collective that the engine issues is here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import timedelta
from time import perf_counter
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import _broadcast_coalesced

# A longer message is cut; the figure is DDP's.
COALESCED_NBYTES = 250 * 2**20


class Work(Protocol):
    """The handle of an asynchronous collective."""

    def wait(self) -> Any: ...


class AllReduce(Protocol):
    """What a step needs of the network; tests put a recording one in its place."""

    @property
    def world_size(self) -> int: ...

    def all_reduce(self, flat: Tensor) -> Work:
        """Begin to sum ``flat`` over the ranks, in place. All ranks call it in the same order."""
        ...


class Collectives:
    """Collectives of one process group. Each method must be called by all of its ranks alike.

    Where ``process_group`` is None it makes one of all ranks: another engine, or a collective of
    the user's in the same backward, would else come between ours in an order of its own.
    """

    def __init__(
        self, process_group: dist.ProcessGroup | None, device: torch.device, timeout_s: float
    ) -> None:
        self._made = process_group is None
        if process_group is None:
            process_group = dist.new_group(timeout=timedelta(seconds=timeout_s))
        self._group: dist.ProcessGroup | None = process_group
        # NCCL takes its own device's tensors only; gloo takes any.
        self.backend = dist.get_backend(self._group)
        self.on_cuda = device.type == "cuda" and self.backend != "gloo"
        self._device = device if self.on_cuda else torch.device("cpu")
        self.world_size = dist.get_world_size(self._group)
        self.rank = dist.get_rank(self._group)
        self.is_open = True

    def close(self) -> None:
        """Give back the process group that was made here, and end its threads. Idempotent."""
        if self._made and dist.is_initialized():
            # A ValueError says that it went already, with all others.
            with suppress(ValueError):
                dist.destroy_process_group(self._group)
        self._group, self._made, self.is_open = None, False, False

    def all_reduce(self, flat: Tensor) -> Work:
        work: Work = dist.all_reduce(flat, group=self._group, async_op=True)
        return work

    def sum(self, values: Iterable[int]) -> list[int]:
        """Elementwise sum over the ranks of 64-bit integers."""
        return self._reduce(values, dist.ReduceOp.SUM)

    def max(self, values: Iterable[int]) -> list[int]:
        """Elementwise maximum over the ranks of 64-bit integers."""
        return self._reduce(values, dist.ReduceOp.MAX)

    def min_and_max(self, value: int) -> tuple[int, int]:
        """The least and the greatest ``value`` of all ranks, in one collective."""
        negative_low, high = self.max([-value, value])
        return -negative_low, high

    def median(self, values: Sequence[float]) -> list[float]:
        """Elementwise median over the ranks of 64-bit floats; the same bits on every rank.

        Of an even number of ranks, the mean of the middle two.
        """
        local = torch.tensor(values, dtype=torch.float64, device=self._device)
        gathered = [torch.empty_like(local) for _ in range(self.world_size)]
        dist.all_gather(gathered, local, group=self._group)
        # On the host: a median on a GPU is refused where deterministic algorithms are asked for.
        return [float(value) for value in torch.stack(gathered).cpu().quantile(0.5, dim=0).tolist()]

    def gather(self, value: Any) -> list[Any]:
        """Every rank's ``value`` (anything that pickles), by rank. Slow: for explaining errors."""
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self._group)
        return values

    def from_rank_0(self, value: Any) -> Any:
        """Rank 0's ``value`` (anything that pickles) on every rank."""
        values = [value]
        dist.broadcast_object_list(values, group=self._group, group_src=0)
        return values[0]

    def time_all_reduce(self, nbytes: int, repeats: int) -> list[float]:
        """Seconds of ``repeats`` all-reduces of ``nbytes``, each from when all ranks have come."""
        flat = torch.zeros(max(1, nbytes // 4), device=self._device)
        seconds = []
        for _ in range(repeats):
            self.min_and_max(0)
            start_s = perf_counter()
            dist.all_reduce(flat, group=self._group)
            if self.on_cuda:
                torch.cuda.synchronize()
            seconds.append(perf_counter() - start_s)
        return seconds

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Copy rank 0's values into ``tensors`` on all ranks."""
        for tensor in tensors:
            # A dense tensor of any strides: the backends take contiguous memory only.
            dense = tensor.contiguous()
            dist.broadcast(dense, group=self._group, group_src=0)
            if dense is not tensor:
                tensor.copy_(dense)

    def broadcast_coalesced(self, tensors: Sequence[Tensor]) -> None:
        """Copy rank 0's values into ``tensors`` on all ranks, in one message a dtype."""
        assert self._group is not None
        _broadcast_coalesced(self._group, list(tensors), COALESCED_NBYTES, 0)

    def _reduce(self, values: Iterable[int], op: Any) -> list[int]:
        tensor = torch.tensor(list(values), dtype=torch.int64, device=self._device)
        dist.all_reduce(tensor, op=op, group=self._group)
        return [int(value) for value in tensor.tolist()]

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

from lightning_gradsched.runtime.watchdog import Watchdog

# A longer message is cut; the figure is DDP's.
COALESCED_NBYTES = 250 * 2**20
AGREEMENT = "an agreement of the engine"


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

    A wait that fails or outlasts ``timeout_s`` raises a ``ReductionError`` that names ``what`` was
    waited for, and the ranks that are missing.
    """

    def __init__(
        self, process_group: dist.ProcessGroup | None, device: torch.device, timeout_s: float
    ) -> None:
        # NCCL takes its own device's tensors only; gloo takes any.
        self.backend = dist.get_backend(process_group)
        self.on_cuda = device.type == "cuda" and self.backend != "gloo"
        self.watchdog = Watchdog(process_group, timeout_s, on_stream=self.on_cuda)
        self._made = process_group is None
        if process_group is None:
            with self.watchdog.waiting_for("the engine's process group"):
                process_group = dist.new_group(timeout=timedelta(seconds=timeout_s))
        self._group: dist.ProcessGroup | None = process_group
        self.watchdog.abort = process_group.abort
        self._device = device if self.on_cuda else torch.device("cpu")
        self.world_size = dist.get_world_size(self._group)
        self.rank = dist.get_rank(self._group)
        self.is_open = True

    def close(self) -> None:
        """Give back the process group that was made here, and end its threads. Idempotent."""
        self.watchdog.close()
        if self._made and dist.is_initialized():
            # A ValueError says that it went already, with all others.
            with suppress(ValueError):
                dist.destroy_process_group(self._group)
        self._group, self._made, self.is_open = None, False, False

    def all_reduce(self, flat: Tensor) -> Work:
        self.watchdog.issued()
        work: Work = dist.all_reduce(flat, group=self._group, async_op=True)
        return work

    def sum(self, values: Iterable[int], what: str = AGREEMENT) -> list[int]:
        """Elementwise sum over the ranks of 64-bit integers."""
        return self._reduce(values, dist.ReduceOp.SUM, what)

    def max(self, values: Iterable[int], what: str = AGREEMENT) -> list[int]:
        """Elementwise maximum over the ranks of 64-bit integers."""
        return self._reduce(values, dist.ReduceOp.MAX, what)

    def min_and_max(self, value: int, what: str = AGREEMENT) -> tuple[int, int]:
        """The least and the greatest ``value`` of all ranks, in one collective."""
        negative_low, high = self.max([-value, value], what)
        return -negative_low, high

    def median(self, values: Sequence[float], what: str = AGREEMENT) -> list[float]:
        """Elementwise median over the ranks of 64-bit floats; the same bits on every rank.

        Of an even number of ranks, the mean of the middle two.
        """
        local = torch.tensor(values, dtype=torch.float64, device=self._device)
        gathered = [torch.empty_like(local) for _ in range(self.world_size)]
        self.watchdog.issued()
        work = dist.all_gather(gathered, local, group=self._group, async_op=True)
        self.watchdog.wait(work, what)
        # On the host: a median on a GPU is refused where deterministic algorithms are asked for.
        return [float(value) for value in torch.stack(gathered).cpu().quantile(0.5, dim=0).tolist()]

    def gather(self, value: Any, what: str = AGREEMENT) -> list[Any]:
        """Every rank's ``value`` (anything that pickles), by rank. Slow: for explaining errors."""
        values: list[Any] = [None] * self.world_size
        self.watchdog.issued()
        with self.watchdog.waiting_for(what):
            dist.all_gather_object(values, value, group=self._group)
        return values

    def from_rank_0(self, value: Any) -> Any:
        """Rank 0's ``value`` (anything that pickles) on every rank."""
        values = [value]
        self.watchdog.issued()
        with self.watchdog.waiting_for("rank 0's word"):
            dist.broadcast_object_list(values, group=self._group, group_src=0)
        return values[0]

    def time_all_reduce(self, nbytes: int, repeats: int) -> list[float]:
        """Seconds of ``repeats`` all-reduces of ``nbytes``, each from when all ranks have come."""
        flat = torch.zeros(max(1, nbytes // 4), device=self._device)
        seconds = []
        for _ in range(repeats):
            self.min_and_max(0, "a timed all-reduce")
            start_s = perf_counter()
            self.watchdog.wait(self.all_reduce(flat), "a timed all-reduce")
            if self.on_cuda:
                torch.cuda.synchronize()
            seconds.append(perf_counter() - start_s)
        return seconds

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Copy rank 0's values into ``tensors`` on all ranks."""
        for tensor in tensors:
            # A dense tensor of any strides: the backends take contiguous memory only.
            dense = tensor.contiguous()
            self.watchdog.issued()
            work = dist.broadcast(dense, group=self._group, group_src=0, async_op=True)
            self.watchdog.wait(work, "rank 0's parameters and buffers")
            if dense is not tensor:
                tensor.copy_(dense)

    def broadcast_coalesced(self, tensors: Sequence[Tensor]) -> None:
        """Copy rank 0's values into ``tensors`` on all ranks, in one message a dtype."""
        assert self._group is not None
        self.watchdog.issued()
        with self.watchdog.waiting_for("rank 0's buffers"):
            _broadcast_coalesced(self._group, list(tensors), COALESCED_NBYTES, 0)

    def _reduce(self, values: Iterable[int], op: Any, what: str) -> list[int]:
        tensor = torch.tensor(list(values), dtype=torch.int64, device=self._device)
        self.watchdog.issued()
        self.watchdog.wait(dist.all_reduce(tensor, op=op, group=self._group, async_op=True), what)
        return [int(value) for value in tensor.tolist()]

"""The one door to torch.distributed: every collective that the engine issues is here.

But for readiness bits, which a thread of its own sends over connections of its own:
``control_group.py``.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import cache, partial
from math import ceil
from time import perf_counter, sleep
from typing import Any, Protocol
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import _broadcast_coalesced
from torch.distributed.distributed_c10d import PrefixStore, Store, _get_default_store

from lightning_gradsched.runtime.control_group import ControlGroup
from lightning_gradsched.runtime.watchdog import Watchdog

# A longer message is cut; the figure is DDP's.
COALESCED_NBYTES = 250 * 2**20
# Of a longer message gloo often fills one direction of a connection at a time: on a link of
# 1 Gbit/s two ranks exchange 16 MiB in 0.52 to 1.01 of the time of an all-reduce whole, and in 0.56
# in pieces of this size (benchmarks/results/scatter.json).
DUPLEX_NBYTES = 512 * 2**10
# In a step messages follow one another. Timed alone, a short one would be charged the latency that
# the next one hides, and be given what a link lets through free after it was idle: of 64 KiB a
# tenth, on one of 1 Gbit/s. So many are timed together, or as many as make so many bytes; one that
# is longer fills the link by itself.
TIMED_TOGETHER = 4
TIMED_TOGETHER_NBYTES = 2 * 2**20
AGREEMENT = "an agreement of the engine"
# Gloo's threads let go of a work, whoever began it, after its waiter has gone on. Where they are
# the last to hold one of its tensors they need the interpreter, and abort the process if that is
# ending ("terminate called without an active exception"). So before it ends they have so long.
LET_GO_S = 0.1
# Groups closed while a collective of theirs was under way: what destroys one waits for that.
_left_running: list[Any] = []
# Tags of messages that no rank sends. By its tag gloo sends a message over one of the interfaces in
# GLOO_SOCKET_IFNAME: so many are reached.
NEVER_SENT = range(2**20, 2**20 + 8)


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


class PeerGroup:
    """Some of the ranks, over gloo connections of their own; for tensors in host memory.

    Each method must be called by all of ``ranks`` alike, and returns when its part is done. A
    ``RuntimeError`` where a peer's part does not come within ``timeout_s``, or the group is closed;
    from then on the group is broken on all ranks.
    """

    def __init__(self, store: Store, ranks: Sequence[int], rank: int, timeout_s: float) -> None:
        self._peers = {peer: number for number, peer in enumerate(ranks)}
        self._own = self._peers[rank]
        timeout = timedelta(seconds=timeout_s)
        # Untyped: torch's stub lists none of its collectives.
        self._group: Any = dist.ProcessGroupGloo(store, self._own, len(ranks), timeout)

    def all_reduce(self, flat: Tensor) -> None:
        """Sum ``flat`` over the ranks, in place."""
        self._group.allreduce(flat).wait()

    def exchange(
        self, sent: Mapping[int, Tensor], received: Mapping[int, Tensor], *, tag: int
    ) -> None:
        """Send to and receive from each peer; messages of another ``tag`` may be under way."""
        works = [self._group.recv([t], self._peers[peer], tag) for peer, t in received.items()]
        works += [self._group.send([t], self._peers[peer], tag) for peer, t in sent.items()]
        for work in works:
            work.wait()

    def close(self) -> None:
        """Break off what is under way, here and at the peers. From any thread."""
        # gloo's abort() ends no wait. A receive that is late makes it close all connections.
        other = (self._own + 1) % len(self._peers)
        for tag in NEVER_SENT:
            with suppress(RuntimeError):
                late = self._group.recv([torch.empty(1)], other, tag)
                late.wait(timedelta(milliseconds=1))


def high_priority(backend: str, timeout: timedelta) -> Any:
    """Options of a group whose kernels go ahead of computation on the same GPU; None but for NCCL.

    On a stream of equal priority they would wait, behind the kernels that they are to hide under,
    for a multiprocessor that is free.
    """
    if backend != dist.Backend.NCCL:
        return None
    options: Any = dist.ProcessGroupNCCL.Options()  # there where torch has NCCL built in
    options.is_high_priority_stream = True
    options._timeout = timeout  # torch warns where it is not the group's
    return options


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
        _end_gently()
        # NCCL takes its own device's tensors only; gloo takes any.
        self.backend = dist.get_backend(process_group)
        self.on_cuda = device.type == "cuda" and self.backend != "gloo"
        self.watchdog = Watchdog(process_group, timeout_s, on_stream=self.on_cuda)
        self._made = process_group is None
        if process_group is None:
            with self.watchdog.waiting_for("the engine's process group"):
                timeout = timedelta(seconds=timeout_s)
                options = high_priority(self.backend, timeout)
                process_group = dist.new_group(timeout=timeout, pg_options=options)
        self._group: dist.ProcessGroup | None = process_group
        self.watchdog.abort = process_group.abort
        self._device = device if self.on_cuda else torch.device("cpu")
        self.world_size = dist.get_world_size(self._group)
        self.rank = dist.get_rank(self._group)
        # Of the group, as numbered in the whole job: so errors name them.
        self.ranks = tuple(dist.get_process_group_ranks(self._group))
        self.is_open = True
        self._given_device = device
        self._timeout_s = timeout_s

    @property
    def global_rank(self) -> int:
        """This rank's number in the whole job."""
        return self.ranks[self.rank]

    def close(self, *, in_use: bool = False) -> None:
        """Give back the process group that was made here, and end its threads. Idempotent.

        ``in_use``: collectives have been begun and not been waited for. They are ended, and the
        group is kept to the end of the process: after one was destroyed with works under way,
        gloo has been seen to lose messages of other groups.
        """
        self.watchdog.close()
        if in_use and self._made and self._group is not None:
            with suppress(Exception):  # not every backend can
                self._group.abort()
            _left_running.append(self._group)
        elif self._made and dist.is_initialized():
            # A ValueError says that it went already, with all others.
            with suppress(ValueError):
                dist.destroy_process_group(self._group)
        self._group, self._made, self.is_open = None, False, False

    def all_reduce(self, flat: Tensor) -> Work:
        self.watchdog.issued()
        work: Work = dist.all_reduce(flat, group=self._group, async_op=True)
        return work

    def begin_broadcast(self, flat: Tensor, source: int) -> Work:
        """Begin to copy the ``flat`` of rank ``source`` (of this group) to all ranks."""
        self.watchdog.issued()
        work: Work = dist.broadcast(flat, group=self._group, group_src=source, async_op=True)
        return work

    def begin_all_to_all(
        self, received: Tensor, sent: Tensor, n_received: Sequence[int], n_sent: Sequence[int]
    ) -> list[Work]:
        """Begin to send each rank its part of ``sent``, and to receive one from each.

        Both are 1-d and hold a part for each rank, in their order, of so many elements. Two ranks
        exchange them in pieces, see ``DUPLEX_NBYTES``; so there may be several works.
        """
        self.watchdog.issued()
        begin = partial(dist.all_to_all_single, group=self._group, async_op=True)
        if self.world_size != 2:
            return [begin(received, sent, list(n_received), list(n_sent))]
        ours, theirs = received.split(list(n_received)), sent.split(list(n_sent))
        ours[self.rank].copy_(theirs[self.rank])
        peer = 1 - self.rank
        incoming, outgoing = ours[peer], theirs[peer]
        n_pieces = ceil(max(incoming.nbytes, outgoing.nbytes) / DUPLEX_NBYTES) or 1
        return [
            begin(into, out, _from_peer(into.numel(), peer), _from_peer(out.numel(), peer))
            for into, out in zip(
                incoming.tensor_split(n_pieces), outgoing.tensor_split(n_pieces), strict=True
            )
        ]

    def control_group(self) -> ControlGroup:
        """Connections of the same ranks on the CPU, for a thread of its own. Collective."""
        return ControlGroup(
            self._fresh_store(),
            self.rank,
            self.world_size,
            self._given_device,
            self._timeout_s,
            self.watchdog,
        )

    def sum(self, values: Iterable[int], what: str = AGREEMENT) -> list[int]:
        """Elementwise sum over the ranks of 64-bit integers."""
        return self._reduce(values, dist.ReduceOp.SUM, what)

    def begin_sum(self, values: Iterable[int], what: str) -> PendingReduction:
        """Begin to sum 64-bit integers over the ranks, while other work goes on."""
        return self._begin(values, dist.ReduceOp.SUM, what)

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
        with self.watchdog.waiting_for(self._first("word")):
            dist.broadcast_object_list(values, group=self._group, group_src=0)
        return values[0]

    def peer_groups(
        self, groups: Sequence[Sequence[int]], timeout_s: float
    ) -> list[PeerGroup | None]:
        """A group of each of these lists of ranks; None where this rank is not in it, or alone."""
        store = self._fresh_store()
        return [
            PeerGroup(PrefixStore(str(number), store), ranks, self.rank, timeout_s)
            if self.rank in ranks and len(ranks) > 1
            else None
            for number, ranks in enumerate(groups)
        ]

    def time_all_reduce(
        self, nbytes: int, repeats: int, network: AllReduce | None = None
    ) -> list[float]:
        """Seconds of an all-reduce of ``nbytes``, ``repeats`` times, from when all ranks have come.

        Of short ones several are under way at once, and share the time alike: see TIMED_TOGETHER.
        Over ``network``, where it is another than this.
        """
        together = max(1, min(TIMED_TOGETHER, TIMED_TOGETHER_NBYTES // max(1, nbytes)))
        flats = torch.zeros(together, max(1, nbytes // 4), device=self._device)
        seconds = []
        for _ in range(repeats):
            self.min_and_max(0, "a timed all-reduce")
            start_s = perf_counter()
            for work in [(network or self).all_reduce(flat) for flat in flats]:
                self.watchdog.wait(work, "a timed all-reduce")
            if self.on_cuda:
                torch.cuda.synchronize()
            seconds.append((perf_counter() - start_s) / together)
        return seconds

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Copy rank 0's values into ``tensors`` on all ranks."""
        for tensor in tensors:
            # A dense tensor of any strides: the backends take contiguous memory only.
            dense = tensor.contiguous()
            self.watchdog.issued()
            work = dist.broadcast(dense, group=self._group, group_src=0, async_op=True)
            self.watchdog.wait(work, self._first("parameters and buffers"))
            if dense is not tensor:
                tensor.copy_(dense)

    def broadcast_coalesced(self, tensors: Sequence[Tensor]) -> None:
        """Copy rank 0's values into ``tensors`` on all ranks, in one message a dtype."""
        assert self._group is not None
        self.watchdog.issued()
        with self.watchdog.waiting_for(self._first("buffers")):
            _broadcast_coalesced(self._group, list(tensors), COALESCED_NBYTES, 0)

    def _first(self, what: str) -> str:
        return f"rank {self.ranks[0]}'s {what}"

    def _fresh_store(self) -> Store:
        """For these ranks' further groups; no key of one that is gone is met in it. Collective."""
        # Private, but what every start of a process group goes through.
        return PrefixStore(self.from_rank_0(f"gradsched/{uuid4()}"), _get_default_store())

    def _reduce(self, values: Iterable[int], op: Any, what: str) -> list[int]:
        return self._begin(values, op, what).values()

    def _begin(self, values: Iterable[int], op: Any, what: str) -> PendingReduction:
        tensor = torch.tensor(list(values), dtype=torch.int64, device=self._device)
        self.watchdog.issued()
        work = dist.all_reduce(tensor, op=op, group=self._group, async_op=True)
        return PendingReduction(tensor, partial(self.watchdog.wait, work, what))


def _from_peer(numel: int, peer: int) -> list[int]:
    """Elements by rank, of two: nothing from or for this one."""
    return [numel, 0] if peer == 0 else [0, numel]


class PendingReduction:
    """Integers of all ranks on their way to being one, by a reduction that has begun."""

    def __init__(self, tensor: Tensor, wait: Callable[[], None]) -> None:
        self._tensor = tensor
        self._wait = wait

    def wait(self) -> None:
        """Return when it has ended; on a GPU, when what is queued from now on comes after it."""
        self._wait()

    def place(self, index: int) -> Tensor:
        """One of them, [1] int64, which the host need not know yet."""
        self._wait()
        return self._tensor[index : index + 1]

    def values(self) -> list[int]:
        """What it came to; on a GPU, waits for the device."""
        self._wait()
        return [int(value) for value in self._tensor.tolist()]


@cache
def _end_gently() -> None:
    """Once a process; see ``LET_GO_S``."""
    atexit.register(sleep, LET_GO_S)

"""The one door to torch.distributed: every collective that the engine issues is here."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from itertools import pairwise
from time import perf_counter
from typing import Any, Protocol
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import _broadcast_coalesced
from torch.distributed.distributed_c10d import PrefixStore, Store, _get_default_store

from lightning_gradsched.runtime.watchdog import Watchdog

# A longer message is cut; the figure is DDP's.
COALESCED_NBYTES = 250 * 2**20
AGREEMENT = "an agreement of the engine"
# How often the control thread, while it waits for other ranks, looks whether it is to end.
STOP_CHECK_S = 0.5
# The control plane's rings have up to 8 ranks: below that, another ring costs more than messages.
MAX_RING_BITS = 3
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
        self._given_device = device
        self._timeout_s = timeout_s

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
        with self.watchdog.waiting_for("rank 0's word"):
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
        """Seconds of ``repeats`` all-reduces of ``nbytes``, each from when all ranks have come.

        Over ``network``, where it is another than this.
        """
        flat = torch.zeros(max(1, nbytes // 4), device=self._device)
        seconds = []
        for _ in range(repeats):
            self.min_and_max(0, "a timed all-reduce")
            start_s = perf_counter()
            self.watchdog.wait((network or self).all_reduce(flat), "a timed all-reduce")
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


class PendingReduction:
    """Integers of all ranks on their way to being one, by a reduction that has begun."""

    def __init__(self, tensor: Tensor, wait: Callable[[], None]) -> None:
        self._tensor = tensor
        self._wait = wait

    def wait(self) -> None:
        """Return when it has ended; on a GPU, when what is queued from now on comes after it."""
        self._wait()

    def values(self) -> list[int]:
        """What it came to; on a GPU, waits for the device."""
        self._wait()
        return [int(value) for value in self._tensor.tolist()]


class ControlGroup:
    """ANDs readiness bits over the ranks, on gloo: NCCL reduces no bits.

    In rings of up to 8 ranks, one ring after the other as along the dimensions of a cube: the
    messages that follow one another, and the connections of a rank, grow with the logarithm of the
    number of ranks. gloo's all-reduce over all of them would be one ring: 2 (n - 1) messages in a
    row, and a connection of each rank with each. Ranks beyond the greatest power of two tell a
    partner before the others begin, and hear the result after; to say a bit twice does an AND no
    harm.

    The rings are made outside of ``dist.new_group``, whose count of groups must be the same on all
    ranks of the job, of which these may be a few. ``device`` is the gradients'.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        world_size: int,
        device: torch.device,
        timeout_s: float,
        watchdog: Watchdog,
    ) -> None:
        # Of private name, but the only way to one thread a ring and one device for all.
        options: Any = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        options._devices = [dist.ProcessGroupGloo.create_default_device()]
        options._threads = 1
        options._timeout = timedelta(seconds=timeout_s)
        self._way = cube_rings(rank, world_size)
        self._rings = {
            ring: _connect(store, ring, rank, options) for ring in dict.fromkeys(self._way)
        }
        self._watchdog = watchdog
        self._works: list[dist.Work] = []  # of the last cycle, kept for the reason in Bucket.work
        self._device = device
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None

    def intersect(self, bits: int, n_bits: int, stop: Callable[[], bool]) -> int | None:
        """The bits that all ranks have set, or None once ``stop()``: the group is then of no use.

        Raises ``RuntimeError`` where another rank has gone or does not come in time.
        """
        n_words = -(-n_bits // 64)
        words = torch.tensor(struct.unpack(f"<{n_words}q", bits.to_bytes(8 * n_words, "little")))
        self._works.clear()
        with self._watchdog.waiting_for("all ranks' word on which groups are full"):
            for ring in self._way:
                work = self._rings[ring].allreduce([words], _BITWISE_AND)
                self._works.append(work)
                if not wait_unless(work, stop):
                    return None
        return int.from_bytes(struct.pack(f"<{n_words}q", *words.tolist()), "little")

    def mark(self) -> torch.cuda.Event | None:
        """The work that this thread's stream has given to the device so far; None on a CPU."""
        if self._side is None:
            return None
        event: torch.cuda.Event = torch.cuda.current_stream(self._device).record_event()
        return event

    @contextmanager
    def after(self, mark: torch.cuda.Event | None) -> Iterator[None]:
        """Collectives begun within it wait for ``mark``, and not for what was queued since.

        A thread begins on device 0 and its default stream, which backward may not use at all. This
        makes current the right device and a stream of its own; NCCL waits for the current stream.
        """
        if self._side is None or mark is None:
            yield
            return
        with torch.cuda.stream(self._side):
            self._side.wait_event(mark)
            yield

    def close(self) -> None:
        """Let go of the connections. Idempotent; not while another thread is in ``intersect``."""
        if not all(work.is_completed() for work in self._works):
            _left_running.extend(self._rings.values())
        self._rings.clear()


def cube_rings(rank: int, world_size: int) -> list[tuple[int, ...]]:
    """The rings of ranks in which ``rank`` ANDs its bits in turn, to have all ranks' at last.

    >>> [cube_rings(rank, 5) for rank in (0, 1, 4)]
    [[(0, 4), (0, 1, 2, 3), (0, 4)], [(0, 1, 2, 3)], [(0, 4), (0, 4)]]
    >>> cube_rings(5, 16)
    [(4, 5, 6, 7), (1, 5, 9, 13)]
    """
    n_bits = world_size.bit_length() - 1  # of the ranks below the greatest power of two
    corners = 1 << n_bits
    if rank >= corners:
        return [(rank - corners, rank)] * 2
    beyond = [(rank, rank + corners)] if rank + corners < world_size else []
    n_rings = -(-n_bits // MAX_RING_BITS)
    cuts = [n_bits * i // n_rings for i in range(n_rings + 1)] if n_rings else [0]
    return [*beyond, *(_ring(rank, low, high) for low, high in pairwise(cuts)), *beyond]


def _ring(rank: int, low: int, high: int) -> tuple[int, ...]:
    """The ranks that differ from ``rank`` in the bits from ``low`` to below ``high`` alone."""
    first = rank & ~((1 << high) - (1 << low))
    return tuple(range(first, first + (1 << high), 1 << low))


def _connect(store: Store, ring: tuple[int, ...], rank: int, options: Any) -> Any:
    # torch's stubs leave out this constructor and the collectives of what it makes.
    make: Any = dist.ProcessGroupGloo
    name = "_".join(map(str, ring))
    return make(PrefixStore(name, store), ring.index(rank), len(ring), options)


def _bitwise_and() -> dist.AllreduceOptions:
    options = dist.AllreduceOptions()
    options.reduceOp = dist.ReduceOp(dist.ReduceOp.BAND)
    return options


_BITWISE_AND = _bitwise_and()


def wait_unless(work: Any, stop: Callable[[], bool]) -> bool:
    """Whether ``work`` has ended before ``stop()``."""
    while not stop():
        try:
            work.wait(timedelta(seconds=STOP_CHECK_S))
        except RuntimeError:
            if not work.is_completed():
                continue
            work.wait()  # its own error; none, where it has ended since the exception
        return True
    return False

"""Connections of a thread of its own, over which ranks AND their readiness bits."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import reduce
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store

from lightning_gradsched.runtime.watchdog import Watchdog

# How often the control thread, while it waits for other ranks, looks whether it is to end.
STOP_CHECK_S = 0.5
# Rings have up to 8 ranks: below that, another ring costs more than messages.
MAX_RING_BITS = 3
# Rings closed while a collective of theirs was under way: what destroys one waits for that.
_left_running: list[Any] = []


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
                work, said = self._begin(ring, words)
                self._works.append(work)
                if not wait_unless(work, stop):
                    return None
                words = reduce(torch.bitwise_and, said)
        return int.from_bytes(struct.pack(f"<{n_words}q", *words.tolist()), "little")

    def _begin(self, ring: tuple[int, ...], words: Tensor) -> tuple[Any, Sequence[Tensor]]:
        """What the work leaves in the tensors, ANDed, is what all of ``ring`` say."""
        if goes_in_parts(len(ring), len(words)):
            return self._rings[ring].allreduce([words], _BITWISE_AND), [words]
        said = torch.empty(len(ring), len(words), dtype=torch.int64)
        return self._rings[ring]._allgather_base(said.view(-1), words), said.unbind()

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


def goes_in_parts(n_ranks: int, n_words: int) -> bool:
    """Whether a ring of ``n_ranks`` should reduce ``n_words``, and not gather what each rank says.

    gloo's all-reduce sends a part a rank round the ring twice; of few words most parts are empty,
    and it sends nothing for these. A gathering sends all words once.

    >>> [goes_in_parts(8, n_words) for n_words in (1, 4, 8, 64)]
    [True, True, False, False]
    """
    return n_words < n_ranks


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

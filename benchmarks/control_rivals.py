"""Four ways for ranks to agree which groups all of them have full, each counting what it sends."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import ceil, log2
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_gradsched.runtime.collectives import Collectives
from lightning_gradsched.runtime.control_group import cube_rings, goes_in_parts

RADIX = 4
TIMEOUT_S = 300.0
# The groups that are full on this rank (one bit each), how many there are -> those full everywhere.
Way = Callable[[int, int], int]


@dataclass(slots=True)
class Traffic:
    """What this rank sent and received in one agreement, headers of the transport left out."""

    n_messages: int = 0
    nbytes: int = 0

    def add(self, nbytes: int, n_messages: int = 1) -> None:
        self.n_messages += n_messages
        self.nbytes += nbytes * n_messages


class Wire:
    """The default process group's messages, counted.

    Of a collective those that gloo's algorithm makes of it: a gather is one message from each rank
    to the root; a broadcast goes down a binomial tree.
    """

    def __init__(self) -> None:
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.traffic = Traffic()

    def send(self, value: Any, to: int) -> None:
        """A pickle, its length first."""
        data = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)
        for tensor in (torch.tensor([len(data)]), data):
            dist.send(tensor, to)
            self.traffic.add(tensor.nbytes)

    def receive(self, source: int) -> Any:
        length = torch.empty(1, dtype=torch.int64)
        dist.recv(length, source)
        return self.receive_bytes(int(length), source, of_length=8)

    def receive_bytes(self, length: int, source: int, *, of_length: int = 0) -> Any:
        data = torch.empty(length, dtype=torch.uint8)
        dist.recv(data, source)
        self.traffic.add(length)
        if of_length:
            self.traffic.add(of_length)
        return pickle.loads(bytes(data.numpy()))

    def gather(self, value: Any) -> list[Any]:
        """Every rank's ``value`` on rank 0: lengths by a gather, then the pickles."""
        data = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)
        length = torch.tensor([len(data)])
        if self.rank > 0:
            dist.gather(length, dst=0)
            dist.send(data, 0)
            self.traffic.add(length.nbytes)
            self.traffic.add(data.nbytes)
            return []
        lengths = [torch.empty_like(length) for _ in range(self.world_size)]
        dist.gather(length, lengths, dst=0)
        self.traffic.add(length.nbytes, self.world_size - 1)
        others = [self.receive_bytes(int(lengths[r]), r) for r in range(1, self.world_size)]
        return [value, *others]

    def broadcast(self, value: Any) -> Any:
        """Rank 0's ``value``: its pickle's length, then the pickle."""
        data = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)
        length = torch.tensor([len(data)])
        self._broadcast(length)
        if self.rank > 0:
            data = torch.empty(int(length), dtype=torch.uint8)
        self._broadcast(data)
        return pickle.loads(bytes(data.numpy()))

    def add_agreement(self, n_ranks: int, n_groups: int) -> None:
        """The engine's, on one of its rings."""
        n_words = -(-n_groups // 64)
        if goes_in_parts(n_ranks, n_words):
            self.add_ring(n_ranks, n_groups)
        else:  # each rank's words are passed on n_ranks - 1 times
            self.traffic.add(8 * n_words, 2 * (n_ranks - 1))

    def add_ring(self, n_ranks: int, n_groups: int) -> None:
        """gloo's all-reduce of readiness words: they go round in up to ``n_ranks`` parts, twice.

        Each rank passes on, and is passed, each part ``n_ranks - 1`` times of ``n_ranks``.
        """
        n_words = -(-n_groups // 64)
        n_parts = min(n_ranks, n_words)
        steps = 2 * 2 * ceil((n_ranks - 1) * n_parts / n_ranks)
        self.traffic.add(8 * -(-n_words // n_parts), steps)

    def _broadcast(self, tensor: Tensor) -> None:
        dist.broadcast(tensor, 0)
        self.traffic.add(tensor.nbytes, binomial_edges(self.rank, self.world_size))


def binomial_edges(rank: int, n_ranks: int) -> int:
    """Messages that ``rank`` handles in a broadcast from rank 0.

    >>> [binomial_edges(rank, 4) for rank in range(4)]
    [2, 2, 1, 1]
    """
    children = sum(
        rank + (1 << k) < n_ranks for k in range(rank.bit_length(), (n_ranks - 1).bit_length())
    )
    return children + (rank > 0)


def names_of(n_groups: int) -> list[str]:
    return [f"encoder.layers.{group}.attention.projection.weight" for group in range(n_groups)]


def to_names(bits: int, names: list[str]) -> list[str]:
    return [name for group, name in enumerate(names) if bits >> group & 1]


def to_bits(agreed: list[str], names: list[str]) -> int:
    wanted = set(agreed)
    digits = "".join("1" if name in wanted else "0" for name in reversed(names))
    return int(digits, 2)


def coordinator(wire: Wire, names: list[str], full: list[str]) -> list[str]:
    """Horovod's slow path: the names of what is full go to rank 0, the list of all come back."""
    requests = wire.gather(full)
    counts = dict.fromkeys(names, 0)
    for request in requests:
        for name in request:
            counts[name] += 1
    answer: list[str] = wire.broadcast([n for n, count in counts.items() if count == len(requests)])
    return answer


def tree(wire: Wire, names: list[str], full: list[str]) -> list[str]:
    """Kurth et al. (2018): the same lists, up and down a tree of RADIX children a rank."""
    first = RADIX * wire.rank + 1
    children = range(min(first, wire.world_size), min(first + RADIX, wire.world_size))
    common = set(full)
    for child in children:
        common.intersection_update(wire.receive(child))
    parent = (wire.rank - 1) // RADIX
    if wire.rank > 0:
        wire.send([name for name in names if name in common], parent)
        agreed: list[str] = wire.receive(parent)
    else:
        agreed = [name for name in names if name in common]
    for child in children:
        wire.send(agreed, child)
    return agreed


def make_ways() -> tuple[Wire, dict[str, Way]]:
    """All ways on the default process group. Collective."""
    wire = Wire()
    control = Collectives(None, torch.device("cpu"), TIMEOUT_S).control_group()
    rings = cube_rings(wire.rank, wire.world_size)

    def bits(full: int, n_groups: int) -> int:
        agreed = control.intersect(full, n_groups, lambda: False)
        assert agreed is not None
        for members in rings:
            wire.add_agreement(len(members), n_groups)
        return agreed

    def ring(full: int, n_groups: int) -> int:
        n_words = -(-n_groups // 64)
        words = torch.frombuffer(bytearray(full.to_bytes(8 * n_words, "little")), dtype=torch.int64)
        dist.all_reduce(words, op=dist.ReduceOp.BAND)
        wire.add_ring(wire.world_size, n_groups)
        return int.from_bytes(bytes(words.numpy()), "little")

    def by_names(
        way: Callable[[Wire, list[str], list[str]], list[str]],
        names: dict[int, Any],
        full: int,
        n_groups: int,
    ) -> int:
        known = names.setdefault(n_groups, names_of(n_groups))
        return to_bits(way(wire, known, to_names(full, known)), known)

    names: dict[int, Any] = {}
    return wire, {
        "bits": bits,
        "ring": ring,
        "tree": partial(by_names, tree, names),
        "coordinator": partial(by_names, coordinator, names),
    }


def messages_in_a_row(way: str, n_ranks: int, n_groups: int) -> int:
    """Messages on the longest chain in which each must follow the one before.

    Two follow each other where the second needs the first, or the same rank reads both.

    >>> [messages_in_a_row(way, 64, 64) for way in ("bits", "ring", "tree", "coordinator")]
    [28, 126, 48, 138]
    >>> messages_in_a_row("bits", 64, 1024)
    14
    """
    levels = 0
    while sum(RADIX**k for k in range(levels + 1)) < n_ranks:
        levels += 1
    return {
        "bits": sum(
            (1 + goes_in_parts(len(ring), -(-n_groups // 64))) * (len(ring) - 1)
            for ring in cube_rings(0, n_ranks)
        ),
        "ring": 2 * (n_ranks - 1),
        "tree": 2 * 2 * RADIX * levels if n_ranks > RADIX else 2 * 2 * (n_ranks - 1),
        "coordinator": 2 * (n_ranks - 1) + 2 * ceil(log2(n_ranks)),
    }[way]

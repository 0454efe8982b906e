"""An all-reduce in three stages: inside the nodes, between them, inside again.

Inside a node each of ``n_owners`` ranks gets everybody's part of one share of the buffer and sums
it up; the i-th owners of all nodes, a rail, all-reduce their share; then every rank of a node gets
each share from its owner. So the links between nodes carry 2 (M - 1) / M of the bytes for M nodes,
as little as an all-reduce can. (Horovod's hierarchical all-reduce; Kurth et al., "Exascale Deep
Learning for Climate Analytics", SC18.)

A share is summed up by one rank of each node, in a fixed order, and its sum over the nodes travels
as it is: all ranks end with the same bits, and every run with the same as the last.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_gradsched.runtime.collectives import Collectives, Work
from lightning_gradsched.runtime.pipeline import Pipeline, Stage

# Larger buffers go in parts, so that the stages of one overlap too.
PART_NBYTES = 4 * 2**20
# Messages of the two stages inside a node are under way at once.
REDUCING, SPREADING = 1, 2


class Layout(NamedTuple):
    """Who works with whom; see ``layout_of``."""

    nodes: tuple[tuple[int, ...], ...]
    n_owners: int

    @property
    def rails(self) -> list[tuple[int, ...]]:
        """The owners of each share, one a node."""
        return list(zip(*(node[: self.n_owners] for node in self.nodes), strict=True))

    @property
    def is_hierarchy(self) -> bool:
        """False on one node, or with one rank a node: there is one level only."""
        return 1 < len(self.nodes) < sum(map(len, self.nodes))


def layout_of(node_of_rank: Sequence[int]) -> Layout:
    """Nodes as they are met, their ranks in order; as many owners as the smallest has ranks.

    >>> layout = layout_of([0, 0, 0, 1, 1])
    >>> layout.nodes, layout.rails
    (((0, 1, 2), (3, 4)), [(0, 3), (1, 4)])
    """
    nodes = [
        tuple(rank for rank, other in enumerate(node_of_rank) if other == node)
        for node in dict.fromkeys(node_of_rank)
    ]
    return Layout(tuple(nodes), min(Counter(node_of_rank).values()))


class HierarchicalAllReduce:
    """``AllReduce`` over nodes of several ranks, for tensors in host memory.

    All ranks of ``collectives`` must make it, call it and close it alike; ``node_of_rank`` must be
    a hierarchy. Each wait for another rank ends after ``timeout_s``.
    """

    def __init__(
        self,
        collectives: Collectives,
        node_of_rank: Sequence[int],
        timeout_s: float,
        *,
        part_nbytes: int = PART_NBYTES,
    ) -> None:
        self.world_size = collectives.world_size
        self._collectives = collectives
        self._part_nbytes = part_nbytes
        self._stages = stages = _Stages(collectives, layout_of(node_of_rank), timeout_s)
        steps = [
            Stage("the reduction inside the node", stages.reduce_inside),
            Stage("the reduction between nodes", stages.reduce_between),
            Stage("spreading the sum inside the node", stages.spread_inside),
        ]
        # Later than any stage: the one that waits in vain says which it is.
        until_s = (1 + len(steps)) * timeout_s
        self._pipeline: Pipeline[Tensor] = Pipeline(steps, stages.close, until_s)

    def all_reduce(self, flat: Tensor) -> Work:
        """Begin to sum the contiguous ``flat`` over the ranks, in place.

        Sparse and complex tensors, which do not come in shares, go flat.
        """
        if flat.is_sparse or flat.is_complex():
            return self._collectives.all_reduce(flat)
        self._collectives.watchdog.issued()
        part_numel = max(1, self._part_nbytes // flat.element_size())
        return self._pipeline.put(flat.view(-1).split(part_numel))

    def close(self) -> None:
        """End threads and connections; what is not done within a second fails. Idempotent."""
        self._pipeline.close()
        self._stages.close()


class _Stages:
    """One rank's part in each stage of a buffer; every method returns when it is done."""

    def __init__(self, collectives: Collectives, layout: Layout, timeout_s: float) -> None:
        rank, nodes = collectives.rank, layout.nodes
        groups = collectives.peer_groups([*nodes, *layout.rails], timeout_s)
        # None for a rank that is alone in its node, or has no share.
        self._node = next(filter(None, groups[: len(nodes)]), None)
        self._rail = next(filter(None, groups[len(nodes) :]), None)
        members = next(node for node in nodes if rank in node)
        self._neighbours = [peer for peer in members if peer != rank]
        self._owned = members.index(rank)
        self._owners = members[: layout.n_owners]
        self._scratch = torch.empty(0, dtype=torch.uint8)

    def reduce_inside(self, flat: Tensor) -> None:
        """Sum the node's parts of this rank's share, into it."""
        shares = self._shares(flat)
        own = self._own(flat, shares)
        parts = self._parts_like(own)
        received = dict(zip(self._neighbours, parts, strict=True)) if own.numel() else {}
        self._exchange(self._others(shares), received, REDUCING)
        for part in parts:
            own += part

    def reduce_between(self, flat: Tensor) -> None:
        """Sum this rank's share over the nodes."""
        own = self._own(flat, self._shares(flat))
        if self._rail is not None and own.numel():
            self._rail.all_reduce(own)

    def spread_inside(self, flat: Tensor) -> None:
        """Give this rank's share to its neighbours, and take theirs."""
        shares = self._shares(flat)
        own = self._own(flat, shares)
        sent = dict.fromkeys(self._neighbours, own) if own.numel() else {}
        self._exchange(sent, self._others(shares), SPREADING)

    def close(self) -> None:
        for group in (self._node, self._rail):
            if group is not None:
                group.close()

    def _shares(self, flat: Tensor) -> Sequence[Tensor]:
        """Of the owners; some are empty where there are fewer numbers than owners."""
        return flat.tensor_split(len(self._owners))

    def _own(self, flat: Tensor, shares: Sequence[Tensor]) -> Tensor:
        return shares[self._owned] if self._owned < len(shares) else flat[:0]

    def _others(self, shares: Sequence[Tensor]) -> dict[int, Tensor]:
        """By owner, what this node's other owners have."""
        pairs = zip(self._owners, shares, strict=True)
        return {peer: s for peer, s in pairs if peer in self._neighbours and s.numel()}

    def _parts_like(self, own: Tensor) -> Sequence[Tensor]:
        """A buffer for each neighbour's part of ``own``, used again for the next."""
        nbytes = own.nbytes * len(self._neighbours)
        if self._scratch.nbytes < nbytes:
            self._scratch = torch.empty(nbytes, dtype=torch.uint8)
        parts = self._scratch[:nbytes].view(own.dtype)
        return list(parts.view(len(self._neighbours), -1)) if nbytes else []

    def _exchange(
        self, sent: Mapping[int, Tensor], received: Mapping[int, Tensor], tag: int
    ) -> None:
        if self._node is not None:
            self._node.exchange(sent, received, tag=tag)

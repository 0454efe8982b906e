"""All-reduce algorithms over links of two kinds, and the machines that have a name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, log2
from typing import Any, NamedTuple

import numpy as np

from lightning_gradsched.core.cost import CostModel
from lightning_gradsched.core.jitter import Jitter, NormalJitter, ParetoJitter
from lightning_gradsched.errors import ProfileError


class Link(NamedTuple):
    """One hop: seconds before its first byte, and seconds a byte (Hockney's model)."""

    alpha_s: float
    beta_s_per_byte: float


@dataclass(frozen=True, slots=True)
class Fabric:
    """``n_ranks`` in nodes of ``ranks_per_node``; ``between`` is one node's way out."""

    n_ranks: int
    ranks_per_node: int
    local: Link
    between: Link

    @property
    def n_nodes(self) -> int:
        return ceil(self.n_ranks / self.ranks_per_node)

    @property
    def n_local(self) -> int:
        """Ranks of the fullest node."""
        return min(self.n_ranks, self.ranks_per_node)

    @property
    def slowest_beta(self) -> float:
        """Seconds a byte of the slowest hop of a route through all ranks."""
        betas = [self.local.beta_s_per_byte] if self.n_local > 1 else []
        if self.n_nodes > 1:
            betas.append(self.between.beta_s_per_byte)
        return max(betas, default=0.0)


@dataclass(frozen=True, slots=True)
class Ring:
    """Reduce-scatter and all-gather around one ring of all ranks.

    ``2 (N - 1)`` hops, of which ``2 (nodes - 1)`` leave a node, and ``2 (N - 1) / N`` of the bytes
    through each link (Patarasuk and Yuan, J. Parallel Distrib. Comput. 69, 2009; the split of the
    hops is that of NCCL's ``ncclTopoTuneModel``, ``src/graph/tuning.cc``).

    >>> Ring(Fabric(4, 1, Link(0.0, 0.0), Link(1.0, 0.5))).all_reduce_s(8)
    12.0
    """

    fabric: Fabric

    def all_reduce_s(self, nbytes: Any) -> Any:
        n, nodes = self.fabric.n_ranks, self.fabric.n_nodes
        alpha_s = 2 * (
            (n - nodes) * self.fabric.local.alpha_s + (nodes - 1) * self.fabric.between.alpha_s
        )
        return alpha_s + 2 * (n - 1) / n * nbytes * self.fabric.slowest_beta


@dataclass(frozen=True, slots=True)
class Tree:
    """Reduce and broadcast over a double binary tree, pipelined: each link at full rate twice.

    Sanders, Speck and Träff, Parallel Computing 35, 2009; NCCL's form: a chain inside the node, the
    tree between nodes, so ``2 ((local - 1) alpha_local + log2(nodes) alpha_between)``
    (``src/graph/tuning.cc``, its logarithm rounded up here).

    >>> Tree(Fabric(4, 1, Link(0.0, 0.0), Link(1.0, 0.5))).all_reduce_s(8)
    12.0
    """

    fabric: Fabric

    def all_reduce_s(self, nbytes: Any) -> Any:
        inside_s = (self.fabric.n_local - 1) * self.fabric.local.alpha_s
        between_s = ceil(log2(self.fabric.n_nodes)) * self.fabric.between.alpha_s
        return 2 * (inside_s + between_s) + 2 * nbytes * self.fabric.slowest_beta


@dataclass(frozen=True, slots=True)
class Hierarchical:
    """Reduce-scatter in each node, all-reduce between nodes of a share a rank, all-gather.

    Horovod's hierarchical all-reduce (pull request 411). The local ranks' rings between nodes run
    at once and share the node's way out, so that it carries all the bytes.

    >>> pairs = Fabric(4, 2, Link(1.0, 0.25), Link(3.0, 0.5))
    >>> Hierarchical(pairs).all_reduce_s(8)  # (1 + 1) + (6 + 4) + (1 + 1)
    14.0
    """

    fabric: Fabric

    def all_reduce_s(self, nbytes: Any) -> Any:
        local, f = self.fabric.n_local, self.fabric
        scatter_s = (local - 1) * (f.local.alpha_s + nbytes / local * f.local.beta_s_per_byte)
        between = Ring(Fabric(f.n_nodes, 1, f.local, f.between))
        return 2 * scatter_s + between.all_reduce_s(nbytes)


# Any of them costs nothing on one rank.
ALGORITHMS: dict[str, Callable[[Fabric], CostModel]] = {
    "ring": Ring,
    "tree": Tree,
    "hierarchical": Hierarchical,
}


@dataclass(frozen=True, slots=True)
class Best:
    """The fastest algorithm for each size, as libraries choose; equal times go to the first.

    >>> fabric = Fabric(64, 1, Link(0.0, 0.0), Link(1e-6, 1e-9))
    >>> [Best(fabric).name_for(nbytes) for nbytes in (8, 100_000_000)]
    ['tree', 'ring']
    """

    fabric: Fabric

    def all_reduce_s(self, nbytes: Any) -> Any:
        # Of an array of sizes too, elementwise: planners ask for many at once.
        ways = [make(self.fabric).all_reduce_s(nbytes) for make in ALGORITHMS.values()]
        return np.minimum.reduce(ways)

    def name_for(self, nbytes: int) -> str:
        return min(ALGORITHMS, key=lambda name: ALGORITHMS[name](self.fabric).all_reduce_s(nbytes))


@dataclass(frozen=True, slots=True)
class Network:
    """A machine: its links, the latency of a small host message, its jitter, and who says so."""

    name: str
    ranks_per_node: int
    local: Link
    between: Link
    message_alpha_s: float
    jitter: Jitter
    notes: tuple[str, ...]

    def fabric(self, n_ranks: int) -> Fabric:
        return Fabric(n_ranks, self.ranks_per_node, self.local, self.between)


_NO_LOCAL = Link(0.0, 0.0)
_ARIES = Link(3.7e-6, 1 / 8e9)

NETWORKS = {
    network.name: network
    for network in (
        Network(
            "summit",
            ranks_per_node=6,
            local=Link(3.4e-6, 1 / 50e9),
            between=Link(9.6e-6, 1 / 25e9),
            message_alpha_s=2e-6,
            jitter=NormalJitter(sigma=0.0248),
            notes=(
                "links: dual-rail EDR InfiniBand, 200 Gbit/s (25 GB/s) a node (published"
                " specification); NVLink 2.0, two bricks, 50 GB/s (not checked); line rates,"
                " nothing taken off",
                "hop latency: 3.4 us NVLink, 9.6 us network (NCCL of 2020, src/graph/tuning.cc,"
                " ring, Simple protocol), applied to the tree too (assumption)",
                "small host message: 2 us (assumption)",
                "jitter: normal, sigma FITTED at one point, the 12 -> 192 V100 samples/s of"
                " Laanait et al.'s logs (0.974; their FLOP/s say 0.963); all else is predicted",
            ),
        ),
        Network(
            "cori-knl",
            ranks_per_node=1,
            local=_NO_LOCAL,
            between=_ARIES,
            message_alpha_s=3.7e-6,
            jitter=ParetoJitter(scale=0.001432),
            notes=(
                "links: Cray Aries, 8 GB/s and 3.7 us MPI (NERSC's Cori configuration page; the"
                " upper end of its 0.25 to 3.7 us)",
                "jitter: Pareto of tail index 2, a family CHOSEN because it follows this curve; its"
                " scale FITTED at one point, the published step time on 1024 ranks, dummy data",
            ),
        ),
        Network(
            "piz-daint",
            ranks_per_node=1,
            local=_NO_LOCAL,
            between=_ARIES,
            message_alpha_s=3.7e-6,
            jitter=NormalJitter(sigma=0.0248),
            notes=(
                "links: as Cori's, the same Aries interconnect (assumption)",
                "jitter: normal, sigma as on summit (assumption: no curve is known to fit)",
            ),
        ),
        Network(
            "ethernet-10g",
            ranks_per_node=1,
            local=_NO_LOCAL,
            between=Link(30e-6, 1 / 1.25e9),
            message_alpha_s=30e-6,
            jitter=NormalJitter(sigma=0.0248),
            notes=(
                "links: line rate 1.25 GB/s; 30 us a hop = the 9.08e-4 s that MG-WFBP's"
                " distributed_optimizer.py fits to 16 ranks, over the ring's 30 hops",
                "jitter: normal, sigma as on summit (assumption)",
            ),
        ),
    )
}


def network_named(name: str) -> Network:
    """Raises ``ProfileError`` with the names that there are."""
    if name not in NETWORKS:
        raise ProfileError(f"expected a network of {sorted(NETWORKS)}, got {name!r}")
    return NETWORKS[name]

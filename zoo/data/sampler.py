"""Which samples a rank reads in which step: seeded by epoch, equal steps, resumable anywhere.

Everything here is a pure function of what all ranks know, so that ranks agree without talking.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np

from zoo.errors import EmptySplitError, ResumeError, UserError

Kind = Literal["global", "node", "block"]


class World(NamedTuple):
    """The ranks, equally many on each node, numbered node by node."""

    world_size: int = 1
    rank: int = 0
    n_nodes: int = 1


class Leg(NamedTuple):
    """A stretch of an epoch: so many steps by so many ranks with such batches."""

    world_size: int
    n_nodes: int
    batch_size: int
    n_steps: int


class EpochBatches:
    """Batches of a training epoch: every rank makes as many steps, every sample comes once.

    - `global`: one shuffle of all samples; step `s` takes the next `batch_size` of them for each
      rank in turn.
    - `node`: a node's ranks read only the files that lie on that node (file `f` on node
      `f % n_nodes`, as staging with `stage=shard` deals them).
    - `block`: blocks of neighbouring samples (a file, a day of a simulation) stay together, their
      order and the order within them shuffled: fewer files open at a time.

    What does not fill a step of all ranks is left out of an epoch (`tail="drop"`, another part in
    each epoch), or filled up with samples of its beginning (`tail="repeat"`).

    [Note: position within an epoch] The position is a list of legs. Replaying them on the epoch's
    order leaves the samples not yet seen, for any number of ranks and nodes: what is resumed with
    other ranks still visits each sample once.

    Args:
        file_of_sample: [n_samples] file of each sample; needed by `node`.
        block_size: samples a block; needed by `block`.
        with_epoch: keys are (epoch, index) for data sets that draw at random by them.

    Raises:
        EmptySplitError: fewer samples than one step needs, the same on every rank.
        UserError: an argument that the kind needs is missing.
    """

    def __init__(
        self,
        n_samples: int,
        batch_size: int,
        world: World = World(),  # noqa: B008
        *,
        kind: Kind = "global",
        shuffle: bool = True,
        seed: int = 0,
        tail: Literal["drop", "repeat"] = "drop",
        file_of_sample: Sequence[int] | np.ndarray | None = None,
        block_size: int | None = None,
        with_epoch: bool = False,
    ) -> None:
        self.n_samples = n_samples
        self.batch_size = batch_size
        self.world = world
        self.kind = kind
        self.shuffle = shuffle
        self.seed = seed
        self.tail = tail
        self.file_of_sample = None if file_of_sample is None else np.asarray(file_of_sample)
        self.block_size = block_size
        self.with_epoch = with_epoch
        self._require_arguments()
        self.epoch = 0
        self.legs = [self._fresh_leg()]
        every = np.arange(n_samples)
        self._n_steps = self._count_steps(every)
        if not self._n_steps or not all(map(len, self._parts(every, world.n_nodes))):
            raise _too_few(n_samples, self._per_step(self.world.n_nodes), self.world, "a step")

    def __len__(self) -> int:
        """Steps of a whole epoch."""
        return self._n_steps

    @property
    def n_steps_done(self) -> int:
        """Steps of this epoch so far, in all legs."""
        return sum(leg.n_steps for leg in self.legs)

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch; the position is kept if it is the one that a loaded state is in."""
        if epoch != self.epoch:
            self.epoch = epoch
            self.rewind()

    def rewind(self) -> None:
        """To the beginning of the epoch."""
        self.legs = [self._fresh_leg()]

    def advance(self) -> None:
        """One step more has been consumed."""
        leg = self.legs[-1]
        self.legs[-1] = leg._replace(n_steps=leg.n_steps + 1)

    def batches_left(self) -> list[np.ndarray]:
        """This rank's indices, a row of `batch_size` for each step that is left of the epoch."""
        order = left = self._order()
        for leg in self.legs:
            left = self._after(left, leg)
        n_steps = self._count_steps(left)
        n_nodes, ranks_per_part = self.world.n_nodes, self._ranks_per_part(self.world.n_nodes)
        part, again = (self._parts(ids, n_nodes)[self._part_of_rank()] for ids in (left, order))
        needed = n_steps * self.batch_size * ranks_per_part
        filled = np.concatenate([part, np.resize(again, max(0, needed - len(part)))])[:needed]
        grid = filled.reshape(n_steps, ranks_per_part, self.batch_size)
        return list(grid[:, self.world.rank % ranks_per_part])

    def keys(self, indices: np.ndarray) -> list[Any]:
        """What a data set is asked for."""
        plain = indices.tolist()
        return [(self.epoch, index) for index in plain] if self.with_epoch else plain

    def state_dict(self) -> dict[str, Any]:
        """The same on every rank."""
        legs = [list(leg) for leg in self.legs if leg.n_steps or leg == self.legs[-1]]
        return {"epoch": self.epoch, "n_samples": self.n_samples, "legs": legs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position; a new leg begins if ranks or batches are others than before.

        Raises:
            ResumeError: the position belongs to a data set of another size.
        """
        if state["n_samples"] != self.n_samples:
            raise ResumeError(
                f"the checkpoint's position is within {state['n_samples']} samples, the data set "
                f"has {self.n_samples}. Next, resume with the same data, or from a checkpoint at "
                "the end of an epoch."
            )
        self.epoch = int(state["epoch"])
        self.legs = [Leg(*map(int, leg)) for leg in state["legs"]]
        if self.legs[-1]._replace(n_steps=0) != self._fresh_leg():
            self.legs.append(self._fresh_leg())

    def n_steps_left(self) -> int:
        """Steps that are left of this epoch, for these ranks."""
        return len(self.batches_left())

    def _fresh_leg(self) -> Leg:
        return Leg(self.world.world_size, self.world.n_nodes, self.batch_size, 0)

    def _order(self) -> np.ndarray:
        generator = np.random.default_rng((self.seed, self.epoch))
        if not self.shuffle:
            return np.arange(self.n_samples)
        if self.kind != "block":
            return generator.permutation(self.n_samples)
        starts = np.arange(0, self.n_samples, self.block_size)
        blocks = (
            np.arange(start, min(start + (self.block_size or 0), self.n_samples))
            for start in generator.permutation(starts)
        )
        return np.concatenate([generator.permutation(block) for block in blocks])

    def _parts(self, indices: np.ndarray, n_nodes: int) -> list[np.ndarray]:
        """What each node's ranks share out, or all ranks."""
        if self.kind != "node" or self.file_of_sample is None:
            return [indices]
        node_of = self.file_of_sample[indices] % n_nodes
        return [indices[node_of == node] for node in range(n_nodes)]

    def _after(self, indices: np.ndarray, leg: Leg) -> np.ndarray:
        parts = self._parts(indices, leg.n_nodes)
        n_seen = leg.n_steps * leg.batch_size * leg.world_size // len(parts)
        left = np.concatenate([part[n_seen:] for part in parts])
        return left if len(parts) == 1 else indices[np.isin(indices, left)]

    def _count_steps(self, indices: np.ndarray) -> int:
        sizes = [len(part) for part in self._parts(indices, self.world.n_nodes)]
        per_step = self._per_step(self.world.n_nodes)
        if self.tail == "repeat":
            return max(-(-size // per_step) for size in sizes)
        return min(size // per_step for size in sizes)

    def _per_step(self, n_nodes: int) -> int:
        return self.batch_size * self._ranks_per_part(n_nodes)

    def _ranks_per_part(self, n_nodes: int) -> int:
        return self.world.world_size // (n_nodes if self.kind == "node" else 1)

    def _part_of_rank(self) -> int:
        return self.world.rank // self._ranks_per_part(self.world.n_nodes)

    def _require_arguments(self) -> None:
        if self.kind not in ("global", "node", "block"):
            raise UserError(f"expected a sampler global, node or block, got {self.kind!r}")
        if self.kind == "node" and self.file_of_sample is None:
            raise UserError("sampler node: expected file_of_sample, got None")
        if self.kind == "block" and not self.block_size:
            raise UserError(f"sampler block: expected block_size >= 1, got {self.block_size}")
        if self.world.world_size % self.world.n_nodes:
            raise UserError(
                f"expected as many ranks on each node, got {self.world.world_size} ranks on "
                f"{self.world.n_nodes} nodes. Next, start equally many on each."
            )


class ExactBatches:
    """Batches of a validation or test epoch: each sample on one rank, once, none left out.

    Ranks make equally many steps, with batches of at most `batch_size`. Only with batches of one
    sample, or with parts a node of unlike sizes, some ranks make a step less: a loop over it must
    then reduce at the end, not in each step (torchmetrics and Lightning's `on_epoch` do).

    Args:
        file_of_sample: where given, a node's ranks read only its own files, as with `node` above.

    Raises:
        EmptySplitError: fewer samples than ranks, the same on every rank.
    """

    with_epoch = False
    epoch = 0

    def __init__(
        self,
        n_samples: int,
        batch_size: int,
        world: World = World(),  # noqa: B008
        file_of_sample: Sequence[int] | np.ndarray | None = None,
    ) -> None:
        self.n_samples = n_samples
        self.batch_size = batch_size
        self.world = world
        shares = _shares(np.arange(n_samples), world, file_of_sample)
        largest, smallest = max(map(len, shares)), min(map(len, shares))
        if not smallest:
            raise _too_few(n_samples, world.world_size, world, "a sample for each rank")
        own = shares[world.rank]
        n_steps = min(-(-largest // batch_size), len(own))
        self._batches = np.array_split(own, n_steps)

    def __len__(self) -> int:
        return len(self._batches)

    def batches_left(self) -> list[np.ndarray]:
        """This rank's indices, step by step."""
        return list(self._batches)

    def keys(self, indices: np.ndarray) -> list[int]:
        """What a data set is asked for."""
        return indices.tolist()

    def advance(self) -> None:
        """A validation has no position to keep."""

    def rewind(self) -> None:
        """Likewise."""


def _shares(
    indices: np.ndarray, world: World, file_of_sample: Sequence[int] | np.ndarray | None
) -> list[np.ndarray]:
    if file_of_sample is None:
        return [indices[rank :: world.world_size] for rank in range(world.world_size)]
    per_node = world.world_size // world.n_nodes
    node_of = np.asarray(file_of_sample) % world.n_nodes
    return [
        indices[node_of == rank // per_node][rank % per_node :: per_node]
        for rank in range(world.world_size)
    ]


def _too_few(n_samples: int, needed: int, world: World, for_what: str) -> EmptySplitError:
    return EmptySplitError(
        f"expected at least {needed} samples for {for_what} ({world.world_size} ranks on "
        f"{world.n_nodes} nodes), got {n_samples}. Next, use fewer ranks or a smaller "
        "data.batch_size, or make more samples."
    )


def split_blocks(
    n_samples: int, fractions: Sequence[float], block_size: int, seed: int = 0
) -> list[np.ndarray]:
    """Indices of each split, sorted; blocks of neighbouring samples are never torn apart.

    Consecutive snapshots of a simulation resemble each other: drawn one by one, a validation split
    would hold near copies of training samples.

    Args:
        fractions: of the blocks, by split; what they leave of 1 is left out.
        block_size: samples a block, such as a day of snapshots; 1 draws sample by sample.

    >>> [len(split) for split in split_blocks(100, (0.8, 0.1, 0.1), block_size=5)]
    [80, 10, 10]
    """
    starts = np.random.default_rng(seed).permutation(np.arange(0, n_samples, block_size))
    ends = np.round(np.cumsum([0.0, *fractions]) * len(starts)).astype(int)
    return [_members(starts[first:last], block_size, n_samples) for first, last in pairwise(ends)]


def _members(starts: Iterable[int], block_size: int, n_samples: int) -> np.ndarray:
    blocks = [np.arange(start, min(start + block_size, n_samples)) for start in sorted(starts)]
    return np.concatenate(blocks) if blocks else np.arange(0)

"""Groups that travel in halves: summed by the ranks that own their parameters, then sent to all.

[Note: halves] Each parameter of such a group has one rank that owns it. In backward every rank
sends each owner its part of the group, and the owner sums what it gets in the order of the ranks.
When all of these have come, the ranks exchange in one short message what they foresee to be asked
of the gradients (runtime/inquiry.py); then the owners send their means to all, which the next
forward waits for. Both halves are exchanges of all with all: gloo's own reduce-scatter is an
all-reduce of everything (``benchmarks/scatter.py`` measures them).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

import torch
from torch import Tensor

from lightning_gradsched.naming import some_of
from lightning_gradsched.runtime.bucket import Bucket, Slot
from lightning_gradsched.runtime.collectives import Collectives, Work
from lightning_gradsched.runtime.transport import Transport, Works


@dataclass(frozen=True, slots=True)
class Deferred:
    """``apply`` on the gradients at ``places``. ``inv_scale``: where it unscales, by what."""

    places: tuple[int, ...]
    apply: Callable[[list[Tensor]], object]
    inv_scale: float | None = None


# Has the gradients of a bucket answer what they can and else call the function first.
Opens = Callable[["ScatteredBucket", Callable[[], None]], None]


class Stage(Enum):
    """How far a group has come; an exception may cut a backward off at any of them."""

    SUMS = auto()  # from its launch in backward until this rank has summed what it owns
    SUMMED = auto()  # until all groups have come so far and what is foreseen of them was told
    TOLD = auto()  # until its means are sent
    MEANS = auto()  # from then to the next launch


@dataclass(eq=False, slots=True, kw_only=True)
class ScatteredBucket(Bucket):
    """A group whose parameters belong to ranks: ``flat`` holds them in the order of their owners.

    The counts at its end belong to the last rank. It carries no signals.
    """

    owners: Sequence[int]  # of each slot, in order
    opens: Opens
    rank: int
    ranks: Sequence[int]  # all, as numbered in the whole job
    stage: Stage = Stage.MEANS
    first_work: Work | None = field(init=False, default=None)  # kept as long as ``work``
    n_owned: list[int] = field(init=False)  # elements of ``flat``, by rank
    # This rank's part as each rank has sent it; in the second half, as it is sent to each.
    parts: Tensor = field(init=False)
    own: Tensor = field(init=False)  # this rank's part of ``flat``
    # What is put off until the means have come; see runtime/scattered_gradient.py.
    deferred: list[Deferred] = field(init=False, default_factory=list)

    def lay_out(self) -> None:
        Bucket.lay_out(self)
        self.n_owned = [0] * self.n_ranks
        for slot, owner in zip(self.slots, self.owners, strict=True):
            self.n_owned[owner] += slot.param.numel()
        self.n_owned[-1] += self.tail.numel()
        self.own = self.flat.split(self.n_owned)[self.rank]
        self.parts = self.flat.new_zeros(self.n_ranks * self.own.numel())

    def __str__(self) -> str:
        names = some_of([slot.name for slot in self.slots])
        if self.stage is Stage.SUMS:
            return f"the sums of group {self.number} ({names})"
        owners = ", ".join(f"rank {self.ranks[owner]}" for owner in sorted(set(self.owners)))
        return f"the means of group {self.number} ({names}) from {owners}"

    @property
    def n_ranks(self) -> int:
        return len(self.ranks)

    def owned(self) -> list[int]:
        """The places of this rank's parameters."""
        return [i for i, owner in enumerate(self.owners) if owner == self.rank]

    @torch.no_grad()
    def sum_parts(self) -> None:
        """Once they have come: as an all-reduce of two ranks would, to the last bit."""
        first, *others = self.parts.view(self.n_ranks, -1)
        self.own.copy_(first)
        for part in others:
            self.own.add_(part)
        self.stage = Stage.SUMMED

    def open_views(self, completes: Callable[[], None]) -> None:
        self.opens(self, completes)

    @torch.no_grad()
    def receive(self) -> None:
        """As of any bucket; what was put off is done to the means."""
        Bucket.receive(self)
        for deferred in self.deferred:
            deferred.apply([self.views[place] for place in deferred.places])
        self.deferred.clear()


class ScatterTransport:
    """Sends the first halves of scattered groups, and all others by ``others``.

    ``before_means``: called when all sums of a backward have come. ``opens``: of its buckets.
    """

    counts_apart = False

    def __init__(
        self,
        collectives: Collectives,
        others: Transport,
        before_means: Callable[[Sequence[ScatteredBucket]], None],
        opens: Opens,
    ) -> None:
        self._collectives = collectives
        self._others = others
        self._before_means = before_means
        self._opens = opens

    def lay_out(self, number: int, slots: Sequence[Slot], owners: Sequence[int]) -> ScatteredBucket:
        """The bucket of a group; ``owners``: of each of ``slots``."""
        pairs = sorted(zip(slots, owners, strict=True), key=lambda pair: pair[1])
        return ScatteredBucket(
            number=number,
            slots=[slot for slot, _ in pairs],
            owners=[owner for _, owner in pairs],
            opens=self._opens,
            rank=self._collectives.rank,
            ranks=self._collectives.ranks,
        )

    @torch.no_grad()
    def send(self, bucket: Bucket, *, is_last: bool, piece: int = 0) -> Work:
        if not isinstance(bucket, ScatteredBucket):
            return self._others.send(bucket, is_last=is_last, piece=piece)
        bucket.stage = Stage.SUMS
        bucket.deferred.clear()
        bucket.flat.mul_(1.0 / bucket.n_ranks)
        n_own = [bucket.own.numel()] * bucket.n_ranks
        return Works(
            self._collectives.begin_all_to_all(bucket.parts, bucket.flat, n_own, bucket.n_owned)
        )

    def send_means(
        self, buckets: Sequence[ScatteredBucket]
    ) -> Iterator[tuple[ScatteredBucket, Work]]:
        """Begin the second halves, in this order, of groups whose sums have all come.

        What was done already, before an exception, is not done again.
        """
        if any(bucket.stage is Stage.SUMMED for bucket in buckets):
            self._before_means(buckets)
            for bucket in buckets:
                bucket.stage = Stage.TOLD
        for bucket in buckets:
            if bucket.stage is Stage.TOLD:
                work = self._send_means(bucket)
                bucket.first_work, bucket.work = bucket.work, work
                yield bucket, work

    @torch.no_grad()
    def _send_means(self, bucket: ScatteredBucket) -> Work:
        bucket.stage = Stage.MEANS
        bucket.parts.view(bucket.n_ranks, -1).copy_(bucket.own)
        n_own = [bucket.own.numel()] * bucket.n_ranks
        return Works(
            self._collectives.begin_all_to_all(bucket.flat, bucket.parts, bucket.n_owned, n_own)
        )

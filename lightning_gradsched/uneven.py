"""Under Lightning: loaders of uneven length, made as long on each rank as the longest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from lightning.fabric.utilities.data import sized_len

from lightning_gradsched.errors import GradSchedError
from lightning_gradsched.runtime.scheduler import GradientScheduler


class PaddedLoader:
    """``loader``, then its last batch again and again, to be passed over, up to the longest rank's.

    In all else it is ``loader``. Real batches stand in, as Lightning and callbacks handle batches.
    ``n_batches``: how many each rank's loader has.
    """

    def __init__(self, loader: Any, n_batches: Sequence[int], rank: int) -> None:
        self._loader = loader
        self._n_batches = n_batches
        self._rank = rank

    def __len__(self) -> int:
        return max(self._n_batches)

    def __iter__(self) -> Iterator[Any]:
        batch = None
        for batch in self._loader:
            yield batch
        for _ in range(self._n_batches[self._rank], len(self)):
            yield batch

    def __getattr__(self, name: str) -> Any:
        if name == "_loader":  # while it is unpickled
            raise AttributeError(name)
        return getattr(self._loader, name)

    def is_over(self, batch_idx: int) -> bool:
        """Whether this rank's own batches are."""
        return batch_idx >= self._n_batches[self._rank]

    def n_active(self, batch_idx: int) -> int:
        """How many ranks have a batch of that number."""
        return sum(n > batch_idx for n in self._n_batches)


def pad(loader: Any, scheduler: GradientScheduler, rank: int) -> PaddedLoader:
    """Make loaders of the ranks equally long. Collective.

    Raises:
        GradSchedError: on every rank, if the loader of one is empty or does not know its length.
    """
    n_batches = scheduler.batches_by_rank(sized_len(loader))
    known = [n for n in n_batches if n]
    if len(known) < len(n_batches):
        raise GradSchedError(
            "uneven_batches: expected one batch or more and a known length on every rank, got"
            f" {n_batches} batches by rank. Give the dataset a __len__, and each rank an example."
        )
    return PaddedLoader(loader, known, rank)

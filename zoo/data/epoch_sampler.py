"""A sampler whose keys say which epoch they belong to."""

from __future__ import annotations

from collections.abc import Iterator

from torch.utils.data import Dataset, DistributedSampler


class EpochSampler(DistributedSampler[tuple[int, int]]):
    """Yields (epoch, index), each index on one rank: all that a random example depends on.

    A data set that draws from a generator seeded with (seed, epoch, index) gives the same examples
    for any number of workers, and ranks share out what one rank would see. Being a
    `DistributedSampler`, it is left in place by Lightning, which also calls `set_epoch`. If the
    length is no multiple of the number of ranks, a few indices come twice.
    """

    def __init__(self, dataset: Dataset, world_size: int, rank: int) -> None:
        super().__init__(dataset, num_replicas=world_size, rank=rank, shuffle=False)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((self.epoch, index) for index in super().__iter__())

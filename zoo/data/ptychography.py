"""Windows of a ptychographic scan to train on, and the whole scan to look at."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from zoo.data.epoch_sampler import EpochSampler
from zoo.data.ptychography_file import Scan, read_scan
from zoo.errors import PhysicsError
from zoo.physics.ptychography import split_positions


class Patterns(NamedTuple):
    """Some patterns and where the probe stood, on a part of the object of `shape`.

    counts: [P, d, d] float32; corners: [P, 2] int64 and fractions: [P, 2] float32, as of
    `zoo.physics.ptychography.split_positions`; shape: [2] int64, (H, W).
    """

    counts: Tensor
    corners: Tensor
    fractions: Tensor
    shape: Tensor


class RandomWindows(Dataset[Patterns]):
    """Square windows of the object at random places, each with patterns taken inside it.

    A window is a pure function of (seed, epoch, index). It holds a position drawn at random, so
    that none is empty; where fewer than `n_patterns` lie inside, some come twice.
    """

    def __init__(
        self, scan: Scan, window_px: int, n_patterns: int, windows_per_epoch: int, seed: int
    ) -> None:
        self.scan = scan
        self.window_px = window_px
        self.n_patterns = n_patterns
        self.windows_per_epoch = windows_per_epoch
        self.seed = seed
        self.corners, self.fractions = split_positions(scan.positions_px)

    def __len__(self) -> int:
        return self.windows_per_epoch

    def __getitem__(self, key: tuple[int, int]) -> Patterns:
        epoch, index = key
        generator = np.random.default_rng((self.seed, epoch, index))
        corners = self.corners - self._first_pixel(generator)
        reach_px = self.window_px - self.scan.counts.shape[-1]
        inside = ((corners >= 0) & (corners <= reach_px)).all(1).nonzero()[:, 0].numpy()
        few = len(inside) < self.n_patterns
        chosen = torch.from_numpy(generator.choice(inside, self.n_patterns, replace=few))
        return Patterns(
            self.scan.counts[chosen],
            corners[chosen],
            self.fractions[chosen],
            torch.tensor([self.window_px, self.window_px]),
        )

    def _first_pixel(self, generator: np.random.Generator) -> Tensor:
        """Row and column of a window that holds one position at least, [2]."""
        corner = self.corners[generator.integers(len(self.corners))].numpy()
        reach_px = self.window_px - self.scan.counts.shape[-1]
        last = np.array(self.scan.object_shape) - self.window_px
        first = corner - generator.integers(0, reach_px + 1, size=2)
        return torch.from_numpy(first.clip(0, last))


class WholeScan(Dataset[Patterns]):
    """All patterns as one sample."""

    def __init__(self, scan: Scan) -> None:
        self.scan = scan

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Patterns:
        corners, fractions = split_positions(self.scan.positions_px)
        shape = torch.tensor(self.scan.object_shape)
        return Patterns(self.scan.counts, corners, fractions, shape)


class PtychographyDataModule(L.LightningDataModule):
    """Trains on random windows, shared out over the ranks; validates and tests on the whole scan.

    There is no ground truth and nothing held out: validation asks how well the object explains
    the very patterns that it was reconstructed from, as every ptychographic solver does.

    Args:
        path: a file as `zoo.data.ptychography_file` writes it.
        window_px: side of a window, from the probe's side to the object's shorter one.
        n_patterns: of a window.
        windows_per_epoch: over all ranks.
        batch_size: windows a rank and step.

    Raises:
        DataFileError, PhysicsError: the file is no good, or a window does not fit the scan.
    """

    def __init__(
        self,
        path: str,
        window_px: int,
        n_patterns: int,
        windows_per_epoch: int,
        batch_size: int,
        num_workers: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.scan = read_scan(Path(path))
        least, most = self.scan.counts.shape[-1], min(self.scan.object_shape)
        if not least <= window_px <= most:
            raise PhysicsError(
                f"window_px does not fit the scan. Expected {least} (the probe) to {most} (the "
                f"object), got {window_px}. Next, set data.window_px={min(least + 80, most)}."
            )
        self.windows = RandomWindows(self.scan, window_px, n_patterns, windows_per_epoch, seed)
        self.batch_size = batch_size
        self.num_workers = num_workers

    def train_dataloader(self) -> DataLoader[Patterns]:
        world_size, rank = (
            (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        )
        return DataLoader(
            self.windows,
            batch_size=self.batch_size,
            sampler=EpochSampler(self.windows, world_size, rank),
            num_workers=self.num_workers,
            drop_last=True,
        )

    def val_dataloader(self) -> DataLoader[Patterns]:
        return DataLoader(WholeScan(self.scan), batch_size=1)

    def test_dataloader(self) -> DataLoader[Patterns]:
        return self.val_dataloader()

"""Diffraction patterns of random crystals and the potentials they are of, from HDF5 shards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from zoo.data.cbed_shards import CbedShards, Split
from zoo.data.hdf5 import HDF5Samples
from zoo.data.loader import Loader
from zoo.data.sampler import EpochBatches, ExactBatches, World


class CbedBatch(NamedTuple):
    """Samples as they are stored; scaling and layout are the model's.

    A data set's own sample is one without the batch dimension.

    Attributes:
        index: [B] int64, in the split.
        cbed: [B, scan_h * scan_w, det_h, det_w] float32, the share of the beam in each pixel.
        potential: [B, 1, H, W] float32, V Å.
    """

    index: Any
    cbed: Tensor
    potential: Tensor


class CbedSamples(HDF5Samples):
    """A split as a map-style data set of `CbedBatch`es without the batch dimension."""

    def __getitem__(self, index: int) -> CbedBatch:
        sample = super().__getitem__(index)
        return CbedBatch(index, sample["cbed"], sample["potential"])


class CbedDataModule(L.LightningDataModule):
    """Crystals to train, validate and test on; no crystal is in two splits.

    Global rank 0 generates the data set where it is missing; where nodes share no file system,
    generate it on each first. Training batches are shuffled and shared out over the ranks, each
    epoch in another order; validation and test samples come once each, on one of the ranks.

    Args:
        size: a name in `zoo.data.crystals.SIZES`.
        path: folder of the shards and their manifest.
        seed: of the crystals and of the order.
        n_samples: crystals for training, validation and test, where not the size's own.
        batch_size: samples a rank and step.
        num_workers: processes that read ahead, per rank; 0 reads in the rank itself.
        n_processes: processes that generate.

    Raises:
        UserError: there is no such size.
    """

    def __init__(
        self,
        size: str,
        path: str,
        batch_size: int,
        seed: int = 0,
        n_samples: Sequence[int] | None = None,
        num_workers: int = 0,
        n_processes: int = 1,
    ) -> None:
        super().__init__()
        self.shards = CbedShards(size, seed, n_samples)
        self.folder = Path(path)
        self.batch_size = batch_size
        self.seed = seed
        self.num_workers = num_workers
        self.n_processes = n_processes

    def prepare_data(self) -> None:
        """Generate on rank 0 only: under torchrun or SLURM all ranks come here at once."""
        if rank_zero_only.rank == 0:
            self.shards.generate(self.folder, self.n_processes)

    def train_dataloader(self) -> Loader:
        samples = self._samples("train")
        batches = EpochBatches(len(samples), self.batch_size, self._world, seed=self.seed)
        return Loader(samples, batches, num_workers=self.num_workers)

    def val_dataloader(self) -> Loader:
        return self._exact("val")

    def test_dataloader(self) -> Loader:
        return self._exact("test")

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> CbedBatch:
        return CbedBatch(batch["index"], batch["cbed"], batch["potential"])

    def _exact(self, split: Split) -> Loader:
        samples = self._samples(split)
        batches = ExactBatches(len(samples), self.batch_size, self._world)
        return Loader(samples, batches, num_workers=self.num_workers)

    def _samples(self, split: Split) -> CbedSamples:
        manifest = self.shards.require(self.folder)
        return CbedSamples(self.folder, manifest, indices=self.shards.indices_of(split))

    @property
    def _world(self) -> World:
        if self.trainer is None:
            return World()
        return World(self.trainer.world_size, self.trainer.global_rank, self.trainer.num_nodes)

"""Pairs of low and high resolution out of real photographs."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from zoo.data.loader import Loader
from zoo.data.photograph_file import PhotographFile, ensure_photographs
from zoo.data.photograph_list import names_of
from zoo.data.sampler import EpochBatches, World
from zoo.physics.bicubic import REACH_LOW_PX, downsample


class Pair(NamedTuple):
    """low: [3, p / scale, p / scale], high: [3, p, p]; float32 in [0, 1]."""

    low: Tensor
    high: Tensor


class Picture(NamedTuple):
    """A whole picture and its index in the split; tensors as in `Pair`, not square."""

    index: int
    low: Tensor
    high: Tensor


def _as_image(pixels: np.ndarray) -> Tensor:
    """[H, W, 3] uint8 -> [3, H, W] float32 in [0, 1]."""
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255.0


class RandomPatches(Dataset[Pair]):
    """Aligned patches at random places, flipped and turned at random.

    A patch is a pure function of (seed, epoch, index). Pictures are drawn with equal odds, not by
    area, or else the largest one would be a third of the training.

    Args:
        patch_px: side of the high-resolution patch, a multiple of `scale`.
    """

    def __init__(
        self, file: PhotographFile, patch_px: int, scale: int, patches_per_epoch: int, seed: int
    ) -> None:
        self.file = file
        self.patch_px = patch_px
        self.scale = scale
        self.patches_per_epoch = patches_per_epoch
        self.seed = seed
        self.names = names_of("train")

    def __len__(self) -> int:
        return self.patches_per_epoch

    def __getitem__(self, key: tuple[int, int]) -> Pair:
        epoch, index = key
        generator = np.random.default_rng((self.seed, epoch, index))
        # A border as wide as the kernel reaches is cut off after downsampling: the low-resolution
        # patch is then what it would be inside the whole picture.
        border_px = REACH_LOW_PX * self.scale
        window = self._window(generator, self.patch_px + 2 * border_px)
        high = _turned(_as_image(window), generator)
        low = downsample(high[None], self.scale)[0]
        return Pair(_without_border(low, REACH_LOW_PX), _without_border(high, border_px))

    def _window(self, generator: np.random.Generator, side_px: int) -> np.ndarray:
        name = self.names[generator.integers(len(self.names))]
        height_px, width_px = self.file.size_px("train", name)
        row = int(generator.integers(height_px - side_px + 1))
        col = int(generator.integers(width_px - side_px + 1))
        return self.file.read("train", name, slice(row, row + side_px), slice(col, col + side_px))


def _turned(image: Tensor, generator: np.random.Generator) -> Tensor:
    """One of the eight symmetries of the square."""
    image = torch.rot90(image, int(generator.integers(4)), dims=(1, 2))
    return image.flip(2) if generator.integers(2) else image


def _without_border(image: Tensor, border_px: int) -> Tensor:
    return image[:, border_px:-border_px, border_px:-border_px].contiguous()


class WholePictures(Dataset[Picture]):
    """A split's pictures, cropped at the bottom and right to multiples of `scale`."""

    def __init__(self, file: PhotographFile, split: str, scale: int) -> None:
        self.file = file
        self.split = split
        self.scale = scale
        self.names = names_of(split)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Picture:
        name = self.names[index]
        height_px, width_px = (
            side_px - side_px % self.scale for side_px in self.file.size_px(self.split, name)
        )
        high = _as_image(self.file.read(self.split, name, slice(height_px), slice(width_px)))
        return Picture(index, downsample(high[None], self.scale)[0], high)


class PhotographsDataModule(L.LightningDataModule):
    """Random patches to train on, whole pictures to validate and test on.

    Training patches are shared out over the ranks here. Validation and test pictures are left to
    Lightning's sampler, which may repeat a picture to give every rank as many: metrics must count
    pictures by `Picture.index`, as `zoo.metric.picture_scores` does.

    Args:
        path: HDF5 file, written at the first use.
        scale: 2, 3 or 4.
        patch_px: side of a high-resolution training patch, a multiple of `scale`.
        patches_per_epoch: over all ranks.
        batch_size: patches a rank and step.
        num_workers: processes that load patches, per rank; 0 loads in the rank itself.

    Raises:
        ValueError: `patch_px` is no multiple of `scale`.
    """

    def __init__(
        self,
        path: str,
        scale: int,
        patch_px: int,
        patches_per_epoch: int,
        batch_size: int,
        num_workers: int,
        seed: int,
    ) -> None:
        super().__init__()
        if patch_px % scale:
            raise ValueError(f"patch_px must be a multiple of scale={scale}, got {patch_px}")
        self.file = PhotographFile(Path(path))
        self.scale = scale
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.patches = RandomPatches(self.file, patch_px, scale, patches_per_epoch, seed)

    def prepare_data(self) -> None:
        ensure_photographs(self.file.path)

    def train_dataloader(self) -> Loader:
        world = (
            World(self.trainer.world_size, self.trainer.global_rank) if self.trainer else World()
        )
        batches = EpochBatches(
            len(self.patches), self.batch_size, world, shuffle=False, with_epoch=True
        )
        return Loader(self.patches, batches, num_workers=self.num_workers)

    def val_dataloader(self) -> DataLoader[Picture]:
        return DataLoader(WholePictures(self.file, "val", self.scale), batch_size=1)

    def test_dataloader(self) -> DataLoader[Picture]:
        return DataLoader(WholePictures(self.file, "test", self.scale), batch_size=1)

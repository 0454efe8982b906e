"""Maps that a net learns within a few steps, in the shape of the climate data module."""

from __future__ import annotations

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from zoo.data.climate_batch import ClimateBatch
from zoo.data.climate_channels import CHANNELS, CLASS_FREQUENCIES


class Maps(Dataset):
    """[16, 24] maps of four channels: a channel above 1 is a cyclone, another above 0.5 a river."""

    def __init__(self, n: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        fields = torch.randn(n, 4, 16, 24, generator=generator)
        self.fields = fields.contiguous(memory_format=torch.channels_last)
        rivers = 2 * (fields[:, 1] > 0.5).long()
        self.labels = torch.where(fields[:, 0] > 1.0, 1, rivers)

    def __len__(self) -> int:
        return len(self.fields)

    def __getitem__(self, index: int) -> ClimateBatch:
        return ClimateBatch(index, self.fields[index], self.labels[index])


class MapsData(L.LightningDataModule):
    """As `zoo.data.climate`'s: named channels, latitudes, frequencies."""

    channels = ("TMQ", "U850", "V850", "PRECT")
    class_names = ("background", "tropical_cyclone", "atmospheric_river")
    latitude_deg = np.linspace(-90.0, 90.0, 16)
    class_frequencies = (0.58, 0.16, 0.26)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(Maps(24, 0), 4, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        # Odd: on two ranks a sampler repeats one.
        return DataLoader(Maps(5, 1), 2)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(Maps(5, 2), 2)


class OneSnapshot(MapsData):
    """A snapshot of noise in DeepCAM's size."""

    channels = CHANNELS
    latitude_deg = np.linspace(-90.0, 90.0, 768)
    class_frequencies = CLASS_FREQUENCIES

    def train_dataloader(self) -> DataLoader:
        generator = torch.Generator().manual_seed(0)
        fields = torch.randn(1, 16, 768, 1152, generator=generator)
        labels = torch.randint(0, 3, (1, 768, 1152), generator=generator)
        batch = ClimateBatch(torch.zeros(1, dtype=torch.int64), fields, labels)
        return DataLoader([batch], batch_size=None)

"""Small inverse problems in memory: true parameters, and the data that an operator makes."""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from zoo.errors import TrainingDataError
from zoo.physics.operator import Operator

SPLITS = ("train", "val", "test")


class Sample(NamedTuple):
    """One sample, or a batch of them.

    Attributes:
        index: place in its split; a sampler may repeat a sample, so scores go by it.
        truth: the parameter, of the operator's domain.
        data: A(truth) + noise, of its codomain.
    """

    index: Tensor
    truth: Tensor
    data: Tensor


class Samples(Dataset[Sample]):
    """A split: truth [N, ...] and data [N, ...] in memory.

    Raises:
        TrainingDataError: there are no samples, or not as many truths as data.
    """

    def __init__(self, split: str, truth: Tensor, data: Tensor) -> None:
        if len(truth) == 0 or len(truth) != len(data):
            raise TrainingDataError(
                f"the split {split!r} has {len(truth)} truths and {len(data)} data. Expected as "
                f"many of both, at least 1. Next, set data.n_{split}=1 or more."
            )
        self.split = split
        self.truth = truth
        self.data = data

    def __len__(self) -> int:
        return len(self.truth)

    def __getitem__(self, index: int) -> Sample:
        return Sample(torch.tensor(index), self.truth[index], self.data[index])


def relative_noise_std(clean: Tensor, noise: float) -> float:
    """The standard deviation that is `noise` times the root mean square of clean data."""
    return noise * float(clean.square().mean().sqrt())


class SamplesDataModule(L.LightningDataModule):
    """Draws the splits of an inverse problem; each is a function of the seed and its sizes alone.

    Subclasses give `truths`. Every rank draws all samples, which are few, and Lightning's sampler
    shares them out.

    Args:
        operator: A.
        noise: standard deviation of Gaussian noise; as a share of the root mean square of the clean
            training data where `noise_is_relative`.
        n_train, n_val, n_test: samples a split.
        batch_size: samples a rank and step; None takes the split whole.

    Raises:
        TrainingDataError: a split has no samples.
        PhysicsError: the truths do not fit the operator.
    """

    noise_is_relative = False
    dtype = torch.float32

    def __init__(
        self,
        operator: Operator,
        noise: float,
        n_train: int,
        n_val: int,
        n_test: int,
        batch_size: int | None,
        seed: int,
    ) -> None:
        super().__init__()
        self.operator = operator
        self.noise = noise
        self.sizes = dict(zip(SPLITS, (n_train, n_val, n_test), strict=True))
        self.batch_size = batch_size
        self.seed = seed
        self._splits: dict[str, Samples] = {}

    @abstractmethod
    def truths(self, split: str, n: int, generator: torch.Generator) -> Tensor:
        """[n, *operator.domain.shape]."""

    def samples(self, split: str) -> Samples:
        """The split, drawn at the first call."""
        if split not in self._splits:
            self._splits[split] = self._draw(split)
        return self._splits[split]

    def train_dataloader(self) -> DataLoader[Sample]:
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> DataLoader[Sample]:
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[Sample]:
        return self._loader("test")

    def noise_std(self) -> float:
        """Standard deviation of the noise on the data, in their unit."""
        if not self.noise_is_relative:
            return self.noise
        if not hasattr(self, "_noise_std"):
            # Of a sample of its own: the noise of one experiment is the same for any n_train.
            clean = self._clean(self._truths("reference", 64))
            self._noise_std = relative_noise_std(clean, self.noise)
        return self._noise_std

    def _draw(self, split: str) -> Samples:
        truth = self._truths(split, self.sizes[split])
        if len(truth) == 0:
            return Samples(split, truth, truth)
        clean = self._clean(truth)
        noise = torch.randn(clean.shape, dtype=clean.dtype, generator=self._generator(split, 1))
        return Samples(split, truth, clean + self.noise_std() * noise)

    def _truths(self, split: str, n: int) -> Tensor:
        return self.truths(split, n, self._generator(split, 0)).to(self.dtype)

    @torch.no_grad()
    def _clean(self, truth: Tensor) -> Tensor:
        return torch.cat([self.operator(chunk) for chunk in truth.split(256)])

    def _generator(self, split: str, stream: int) -> torch.Generator:
        place = (*SPLITS, "reference").index(split)
        return torch.Generator().manual_seed(1_000_003 * self.seed + 10 * place + stream)

    def _loader(self, split: str, shuffle: bool = False) -> DataLoader[Sample]:
        samples = self.samples(split)
        return DataLoader(samples, batch_size=self.batch_size or len(samples), shuffle=shuffle)

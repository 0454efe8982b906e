"""Handwritten digits of 8 x 8 pixels, measured by an operator.

`digits.h5` beside this file: Optical Recognition of Handwritten Digits by E. Alpaydin and C. Kaynak
(UCI Machine Learning Repository, doi 10.24432/C50P49, CC BY 4.0), its test part of 1,797 images as
scikit-learn redistributes it. Licence and source are attributes of the file.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

from zoo.data.samples import SPLITS, SamplesDataModule
from zoo.errors import DataFileError, TrainingDataError
from zoo.physics.operator import Operator

PATH = Path(__file__).with_name("digits.h5")
_LARGEST_VALUE = 16.0
# Images of each split; training sets are drawn from the first.
_POOLS = {"train": 1000, "val": 200, "test": 597}


def read_digits(path: Path = PATH) -> Tensor:
    """[1797, 64] float32 in [0, 1].

    Raises:
        DataFileError: the file is missing, damaged or foreign.
    """
    try:
        with h5py.File(path, "r", locking=False) as file:
            images = file["images"][:]
    except (OSError, KeyError) as error:
        raise DataFileError(
            f"{path} cannot be read. Expected an HDF5 file with a dataset /images, got: {error}. "
            "Next, restore it with `git checkout zoo/data/digits.h5`."
        ) from error
    return torch.from_numpy(images.astype(np.float32)).flatten(1) / _LARGEST_VALUE


class DigitsDataModule(SamplesDataModule):
    """x a digit as [64] in [0, 1]; y = A x + N(0, noise^2).

    The split of the 1,797 images into pools of 1,000, 200 and 597 is the same for any seed; the
    seed draws the training images from their pool, and all noise.

    Raises:
        TrainingDataError: a split asks for more images than its pool has.
    """

    def __init__(
        self,
        operator: Operator,
        noise: float = 0.05,
        n_train: int = 20,
        n_val: int = 200,
        n_test: int = 597,
        batch_size: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(operator, noise, n_train, n_val, n_test, batch_size, seed)
        for split in SPLITS:
            if self.sizes[split] > _POOLS[split]:
                raise TrainingDataError(
                    f"n_{split}={self.sizes[split]} images were asked for. Expected at most "
                    f"{_POOLS[split]}. Next, set data.n_{split}={_POOLS[split]}."
                )

    def truths(self, split: str, n: int, generator: torch.Generator) -> Tensor:
        pool = _pool(split)
        order = torch.randperm(len(pool), generator=generator) if split == "train" else slice(None)
        return pool[order][:n]


def _pool(split: str) -> Tensor:
    images = read_digits()
    shuffled = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))]
    parts = dict(zip(_POOLS, shuffled.split(list(_POOLS.values())), strict=True))
    return parts[split]


def as_images(vectors: Tensor) -> Tensor:
    """[N, 64] -> [N, 8, 8]."""
    return vectors.unflatten(1, (8, 8))

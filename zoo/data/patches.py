"""Small gray patches of the real photographs, measured by an operator."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from zoo.data.photograph_file import PhotographFile, ensure_photographs
from zoo.data.photograph_list import names_of
from zoo.data.samples import SamplesDataModule
from zoo.physics.operator import Operator

# Of red, green and blue in gray (ITU-R BT.601).
_LUMA = np.array([0.299, 0.587, 0.114])


class PatchesDataModule(SamplesDataModule):
    """x a square gray patch in [0, 1], in the shape of the operator's domain; y = A x + noise.

    The splits are of different photographs (`zoo.data.photograph_list`). Every photograph has the
    same odds, and within it every place; the seed draws the patches of the training set and all
    noise, those of the other splits are the same for any seed.

    Args:
        path: HDF5 file of the photographs, written at the first use.
    """

    def __init__(
        self,
        operator: Operator,
        path: str = "data/photographs.h5",
        noise: float = 0.02,
        n_train: int = 64,
        n_val: int = 200,
        n_test: int = 300,
        batch_size: int | None = 16,
        seed: int = 0,
    ) -> None:
        super().__init__(operator, noise, n_train, n_val, n_test, batch_size, seed)
        self.path = Path(path)

    def prepare_data(self) -> None:
        ensure_photographs(self.path)

    def truths(self, split: str, n: int, generator: torch.Generator) -> Tensor:
        shape = self.operator.domain.shape
        side_px = math.isqrt(math.prod(shape))
        if split != "train":
            generator = torch.Generator().manual_seed(len(split))
        random = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))
        patches = np.zeros((n, side_px, side_px), dtype=np.float32)
        with PhotographFile(self.path) as file:
            for place in range(n):
                patches[place] = _patch(file, split, side_px, random)
        return torch.from_numpy(patches).view(n, *shape)


def _patch(
    file: PhotographFile, split: str, side_px: int, random: np.random.Generator
) -> np.ndarray:
    names = names_of(split)
    name = names[random.integers(len(names))]
    height_px, width_px = file.size_px(split, name)
    row = int(random.integers(height_px - side_px + 1))
    col = int(random.integers(width_px - side_px + 1))
    rows, cols = slice(row, row + side_px), slice(col, col + side_px)
    return file.read(split, name, rows, cols) @ _LUMA / 255.0

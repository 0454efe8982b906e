"""Patches and pictures: alignment, reproducibility, sharing out over ranks and workers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from zoo.data.loader import Loader
from zoo.data.photograph_file import PhotographFile
from zoo.data.photographs import PhotographsDataModule, RandomPatches, WholePictures
from zoo.data.sampler import EpochBatches, World
from zoo.physics.bicubic import REACH_LOW_PX, downsample


def _patches(path: Path, scale: int = 2, seed: int = 0) -> RandomPatches:
    return RandomPatches(PhotographFile(path), 48, scale, patches_per_epoch=12, seed=seed)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_patches_are_aligned(photographs_path: Path, scale: int) -> None:
    patches = _patches(photographs_path, scale)
    edge = slice(REACH_LOW_PX, -REACH_LOW_PX)
    for index in range(len(patches)):
        low, high = patches[0, index]
        assert high.shape == (3, 48, 48)
        assert low.shape == (3, 48 // scale, 48 // scale)
        again = downsample(high[None], scale)[0]
        torch.testing.assert_close(low[:, edge, edge], again[:, edge, edge], atol=1e-5, rtol=0)


def test_a_patch_is_a_function_of_seed_epoch_and_index(photographs_path: Path) -> None:
    patches = _patches(photographs_path)
    same = _patches(photographs_path)[3, 5].high
    assert torch.equal(patches[3, 5].high, same)
    others = (patches[4, 5], patches[3, 6], _patches(photographs_path, seed=1)[3, 5])
    assert not any(torch.equal(other.high, same) for other in others)


def test_values_are_in_the_unit_interval(photographs_path: Path) -> None:
    for tensor in _patches(photographs_path)[0, 0]:
        assert tensor.dtype == torch.float32
        assert 0.0 <= tensor.min() < tensor.max() <= 1.0


def test_ranks_share_out_what_one_rank_sees(photographs_path: Path) -> None:
    patches = _patches(photographs_path)
    samplers = [_batches(patches, World(2, rank)) for rank in (0, 1)]
    for sampler in samplers:
        sampler.set_epoch(7)
    keys = [key for s in samplers for batch in s.batches_left() for key in s.keys(batch)]
    assert sorted(keys) == [(7, index) for index in range(len(patches))]


def test_workers_do_not_change_the_patches(photographs_path: Path) -> None:
    patches = _patches(photographs_path)
    # The handle of this process is open when the workers start.
    assert patches[0, 0].high.shape == (3, 48, 48)
    loaders = [Loader(patches, _batches(patches), num_workers=n) for n in (0, 2)]
    low = [torch.cat([batch.low for batch in loader]) for loader in loaders]
    assert torch.equal(*low)
    loaders[1].close()


def _batches(patches: RandomPatches, world: World = World()) -> EpochBatches:  # noqa: B008
    return EpochBatches(len(patches), 2, world, shuffle=False, with_epoch=True)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_whole_pictures_are_cropped_to_the_scale(photographs_path: Path, scale: int) -> None:
    pictures = WholePictures(PhotographFile(photographs_path), "test", scale)
    for index in range(len(pictures)):
        picture = pictures[index]
        assert picture.index == index
        assert [side_px % scale for side_px in picture.high.shape[1:]] == [0, 0]
        assert picture.high.shape[1:] == tuple(scale * side for side in picture.low.shape[1:])


def test_patch_that_does_not_divide_is_refused(photographs_path: Path) -> None:
    with pytest.raises(ValueError, match="patch_px must be a multiple of scale=3, got 50"):
        PhotographsDataModule(str(photographs_path), 3, 50, 16, 4, 0, seed=0)

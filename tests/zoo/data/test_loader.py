"""The loader: values, order, position, and memory that is not written while somebody reads it."""

from __future__ import annotations

import gc
import os
import signal
from pathlib import Path

import pytest
import torch
from torch.utils.data import Dataset

from tests import ranks  # noqa: F401  the fork server is to know torch
from tests.zoo.data.shardset import make_sample, write_set
from zoo.data.hdf5 import HDF5Samples, open_samples
from zoo.data.loader import Loader
from zoo.data.sampler import EpochBatches, ExactBatches
from zoo.errors import LoaderError, TruncatedFileError, UserError


def loader_of(dataset: HDF5Samples, num_workers: int = 0, **options) -> Loader:
    return Loader(
        dataset, EpochBatches(len(dataset), 4, seed=1), num_workers=num_workers, **options
    )


def indices_of(loader: Loader) -> list[list[int]]:
    return [batch["index"].tolist() for batch in loader]


def assert_batch(batch: dict[str, torch.Tensor]) -> None:
    """The batch holds the samples that it says it holds."""
    for row, index in enumerate(batch["index"].tolist()):
        sample = make_sample(index)
        assert torch.equal(batch["image"][row].permute(1, 2, 0), torch.from_numpy(sample["image"]))
        assert torch.equal(batch["label"][row], torch.from_numpy(sample["label"]))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_hold_what_the_sampler_says_in_its_order(
    samples: HDF5Samples, num_workers: int
) -> None:
    loader = loader_of(samples, num_workers)
    sampler = EpochBatches(len(samples), 4, seed=1)
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)
        sampler.set_epoch(epoch)
        wanted = [batch.tolist() for batch in sampler.batches_left()]
        assert len(loader) == len(wanted) == 5
        for batch, indices in zip(loader, wanted, strict=True):
            assert batch["index"].tolist() == indices
            assert_batch(batch)
            assert batch["image"].is_contiguous(memory_format=torch.channels_last)
    loader.close()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_batches_that_are_kept_are_not_overwritten(samples: HDF5Samples, num_workers: int) -> None:
    loader = loader_of(samples, num_workers)
    kept = list(loader)
    kept += list(loader)
    for batch in kept:
        assert_batch(batch)
    views = [batch["image"][1, 2] for batch in kept]
    values = [view.clone() for view in views]
    del kept, batch
    list(loader)
    assert all(map(torch.equal, views, values))
    loader.close()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_batches_that_are_let_go_share_memory(samples: HDF5Samples, num_workers: int) -> None:
    loader = loader_of(samples, num_workers)
    places = set()
    for _ in range(4):
        for batch in loader:
            places.add(batch["image"].data_ptr())
            del batch
    # One in hand and `prefetch` on the way.
    assert len(places) <= 1 + 2 * max(1, num_workers)
    loader.close()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_position_counts_batches_handed_out(samples: HDF5Samples, num_workers: int) -> None:
    straight = loader_of(samples)
    straight.sampler.set_epoch(2)
    whole = indices_of(straight)

    loader = loader_of(samples, num_workers, prefetch=3)
    loader.sampler.set_epoch(2)
    iterator = iter(loader)
    begun = [next(iterator)["index"].tolist() for _ in range(2)]
    state = loader.state_dict()
    loader.close()

    resumed = loader_of(samples, num_workers)
    resumed.load_state_dict(state)
    iter(resumed)  # as Lightning does before it names the epoch
    resumed.sampler.set_epoch(2)
    assert begun + indices_of(resumed) == whole
    # The next epoch is a whole one again.
    for each in (straight, resumed):
        each.sampler.set_epoch(3)
    assert indices_of(resumed) == indices_of(straight)
    resumed.close()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_pass_that_is_left_leaves_nothing_behind(samples: HDF5Samples, num_workers: int) -> None:
    loader = loader_of(samples, num_workers, prefetch=2)
    whole = indices_of(loader)
    for batch in loader:
        assert_batch(batch)
        break
    assert indices_of(loader) == whole
    loader.close()


def test_two_passes_at_a_time_are_refused(samples: HDF5Samples) -> None:
    loader = loader_of(samples)
    first = iter(loader)
    next(first)
    next(iter(loader))
    with pytest.raises(RuntimeError, match="one iterator of a Loader at a time"):
        next(first)


def test_counters_tell_samples_bytes_and_waiting(samples: HDF5Samples) -> None:
    loader = loader_of(samples)
    indices_of(loader)
    counters = loader.counters
    assert (counters.n_batches, counters.n_samples) == (5, 20)
    assert counters.nbytes == 20 * samples.nbytes_per_sample
    assert counters.wait_s > 0


def test_dummy_data_is_one_batch_again_and_again(samples: HDF5Samples) -> None:
    loader = loader_of(samples, dummy=True)
    batches = [batch["image"].data_ptr() for batch in loader]
    assert len(batches) == 5
    assert len(set(batches)) == 1


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_error_of_the_data_set_arrives_as_itself(tmp_path: Path, num_workers: int) -> None:
    write_set(tmp_path)
    victim = tmp_path / "shard-00002.h5"
    with victim.open("r+b") as file:
        file.truncate(victim.stat().st_size // 2)
    samples = open_samples(tmp_path)
    loader = Loader(samples, ExactBatches(len(samples), 5), num_workers=num_workers)
    with pytest.raises(TruncatedFileError, match=r"shard-00002\.h5 is truncated"):
        list(loader)
    loader.close()


def test_a_worker_that_dies_is_named(samples: HDF5Samples) -> None:
    loader = loader_of(samples, 1, prefetch=1)
    iterator = iter(loader)
    next(iterator)
    os.kill(loader._transport._workers[0].process.pid, signal.SIGKILL)
    with pytest.raises(LoaderError, match="died with exit code -9: it was killed"):
        list(iterator)
    loader.close()


def test_a_worker_that_hangs_is_named(samples: HDF5Samples) -> None:
    loader = loader_of(samples, 1, prefetch=1, stall_timeout_s=60.0)
    iterator = iter(loader)
    next(iterator)
    assert loader._transport._stall_timeout_s == 60.0
    loader._transport._stall_timeout_s = 1.5  # from here on: the worker's start may take longer
    pid = loader._transport._workers[0].process.pid
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(LoaderError, match=r"has not answered for 1\.5 s"):
        list(iterator)
    os.kill(pid, signal.SIGCONT)
    loader.close()


def test_workers_end_with_their_loader(samples: HDF5Samples) -> None:
    loader = loader_of(samples, 1)
    next(iter(loader))
    process = loader._transport._workers[0].process
    del loader
    gc.collect()
    process.join(10)
    assert process.exitcode == 0


class Squares(Dataset):
    def __len__(self) -> int:
        return 10

    def __getitem__(self, key: tuple[int, int]) -> torch.Tensor:
        epoch, index = key
        return torch.tensor(100 * epoch + index * index)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_any_other_data_set_resumes_as_well(num_workers: int) -> None:
    def fresh() -> Loader:
        batches = EpochBatches(10, 2, shuffle=False, with_epoch=True)
        return Loader(Squares(), batches, num_workers=num_workers)

    loader = fresh()
    loader.sampler.set_epoch(1)
    iterator = iter(loader)
    assert next(iterator).tolist() == [100, 101]
    state = loader.state_dict()
    rest = [batch.tolist() for batch in iterator]
    resumed = fresh()
    resumed.load_state_dict(state)
    assert (
        [batch.tolist() for batch in resumed]
        == rest
        == [[104, 109], [116, 125], [136, 149], [164, 181]]
    )
    loader.close()
    resumed.close()


def test_arguments_are_checked(samples: HDF5Samples) -> None:
    for options in ({"start_method": "thread"}, {"prefetch": 0}, {"num_workers": -1}):
        with pytest.raises(UserError, match="expected num_workers"):
            loader_of(samples, **options)

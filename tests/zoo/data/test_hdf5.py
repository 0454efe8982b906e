"""The data set: every layout read alike, channels by name, handles that stay in their process."""

from __future__ import annotations

import multiprocessing as mp
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from tests.zoo.data.shardset import N_SAMPLES, SCHEMA, make_sample, write_set
from zoo.data.hdf5 import HDF5Samples, open_samples
from zoo.data.manifest import cached_manifest, index_files, matching
from zoo.data.schema import Field
from zoo.data.shards import ShardWriter, generate_shards
from zoo.errors import DataFileError, EmptySplitError, SchemaMismatchError, TruncatedFileError


def expected(index: int) -> dict[str, torch.Tensor]:
    sample = make_sample(index)
    image = torch.from_numpy(sample["image"]).permute(2, 0, 1)
    return {"image": image, "label": torch.from_numpy(sample["label"])}


def assert_sample(dataset: HDF5Samples, index: int, of: int | None = None) -> None:
    torch.testing.assert_close(
        dataset[index], expected(index if of is None else of), rtol=0, atol=0
    )


def test_every_sample_is_read_as_written(samples: HDF5Samples) -> None:
    assert len(samples) == N_SAMPLES
    for index in range(N_SAMPLES):
        assert_sample(samples, index)


def test_channels_last_without_transposing(samples: HDF5Samples) -> None:
    arrays = {name: np.empty(shape, dtype) for name, (shape, dtype) in samples.shapes(3).items()}
    samples.read_batch([0, 7, 22], arrays)
    image = samples.as_tensors(arrays)["image"]
    assert image.shape == (3, 4, 6, 5)
    assert image.is_contiguous(memory_format=torch.channels_last)
    assert image.data_ptr() == arrays["image"].ctypes.data


@pytest.mark.parametrize("options", [{"chunked": True}, {"compression": "gzip"}])
def test_every_layout_on_disk_reads_alike(tmp_path: Path, options: dict) -> None:
    generate_shards(ShardWriter(tmp_path, SCHEMA, 7, 4, **options), make_sample)
    dataset = open_samples(tmp_path)
    for index in range(7):
        assert_sample(dataset, index)
    dataset.close()


@pytest.mark.parametrize("compression", [None, "lzf"])
@pytest.mark.parametrize("layout", ["HWC", "CHW"])
def test_channels_by_name(tmp_path: Path, layout: str, compression: str | None) -> None:
    shape, names = ((6, 5, 4), "abcd") if layout == "HWC" else ((4, 6, 5), "abcd")
    field = Field("x", shape, "float32", layout, tuple(names))
    data = np.random.default_rng(0).random((3, *shape), dtype=np.float32)
    writer = ShardWriter(tmp_path, {"x": field}, 3, 3, compression=compression)
    generate_shards(writer, lambda index: {"x": data[index]})
    chosen = Field("x", shape, "float32", layout, tuple(names), select=("d", "b"))
    dataset = open_samples(tmp_path, {"x": chosen})
    channels_first = np.moveaxis(data, -1, 1) if layout == "HWC" else data
    for index in range(3):
        assert np.array_equal(dataset[index]["x"].numpy(), channels_first[index][[3, 1]])
    assert dataset.nbytes_per_sample == 6 * 5 * 2 * 4
    dataset.close()


def test_foreign_files_one_sample_each_by_address(tmp_path: Path) -> None:
    field = Field("climate/data", (6, 5, 4), "float32", "HWC")
    for index in range(3):
        with h5py.File(tmp_path / f"data-{index}.h5", "w") as file:
            file["elsewhere/data"] = make_sample(index)["image"]
    names = matching(tmp_path, ["data-*.h5:elsewhere/data"])
    cache = tmp_path / "cache.json"
    for _ in range(2):
        manifest = cached_manifest(
            cache, lambda: index_files(tmp_path, names, {"image": field}), {"image": field}
        )
        dataset = HDF5Samples(tmp_path, manifest)
        for index in range(3):
            assert torch.equal(dataset[index]["image"], expected(index)["image"])
        dataset.close()


def test_a_cached_manifest_of_another_schema_is_refused(shards: Path) -> None:
    other = {"image": Field("climate/data", (6, 5, 3), "float32", "HWC")}
    with pytest.raises(SchemaMismatchError, match="field image expected"):
        cached_manifest(shards / "manifest.json", lambda: pytest.fail("built"), other)


def test_few_files_are_open_at_a_time(shards: Path) -> None:
    dataset = HDF5Samples(shards, open_samples(shards).manifest, max_open_files=2)
    for index in (0, 5, 10, 0, 15, 22):
        assert_sample(dataset, index)
        assert len(dataset._open) <= 2
    dataset.close()


def test_pickles_carry_no_handle(samples: HDF5Samples) -> None:
    assert_sample(samples, 3)
    copy = pickle.loads(pickle.dumps(samples))
    assert len(copy._open) == 0
    assert_sample(copy, 4)
    copy.close()


def _read_in_child(samples: HDF5Samples, answers: mp.Queue) -> None:
    n_inherited = len(samples._open)
    answers.put((n_inherited, [float(samples[i]["image"][2, 0, 0]) for i in range(len(samples))]))


# Python from 3.12 on warns of forks in a process with threads; torch has some.
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_no_handle_crosses_a_fork(samples: HDF5Samples) -> None:
    assert_sample(samples, 0)
    context = mp.get_context("fork")
    answers = context.Queue()
    children = [context.Process(target=_read_in_child, args=(samples, answers)) for _ in range(2)]
    for child in children:
        child.start()
    for index in range(N_SAMPLES):
        assert_sample(samples, index)
    for _ in children:
        n_inherited, values = answers.get(timeout=30)
        assert n_inherited == 0
        assert values == [10 * index + 2 for index in range(N_SAMPLES)]
    for child in children:
        child.join(10)
        assert child.exitcode == 0


def test_chosen_samples_only(shards: Path) -> None:
    dataset = HDF5Samples(shards, open_samples(shards).manifest, indices=[22, 4, 9])
    for place, index in enumerate((22, 4, 9)):
        assert_sample(dataset, place, index)
    assert list(dataset.file_of_sample) == [4, 0, 1]
    assert dataset.where(2) == (shards / "shard-00001.h5", 4)
    with pytest.raises(IndexError):
        dataset[3]
    dataset.close()


def test_an_empty_split_is_named(shards: Path) -> None:
    with pytest.raises(EmptySplitError, match="hold 23 samples and the split chose none"):
        HDF5Samples(shards, open_samples(shards).manifest, indices=[])


def test_a_truncated_shard_is_named(tmp_path: Path) -> None:
    write_set(tmp_path)
    victim = tmp_path / "shard-00002.h5"
    with victim.open("r+b") as file:
        file.truncate(victim.stat().st_size - 100)
    dataset = open_samples(tmp_path)
    assert_sample(dataset, 0)
    with pytest.raises(TruncatedFileError, match=r"shard-00002\.h5 is truncated"):
        dataset[12]
    dataset.close()


def test_a_shard_cut_while_it_is_open_is_named(tmp_path: Path) -> None:
    write_set(tmp_path)
    dataset = open_samples(tmp_path)
    assert_sample(dataset, 0)
    with (tmp_path / "shard-00000.h5").open("r+b") as file:
        file.truncate(3000)
    with pytest.raises(TruncatedFileError, match=r"shard-00000\.h5 is truncated"):
        dataset[4]
    dataset.close()


def test_missing_and_foreign_shards_are_named(tmp_path: Path) -> None:
    write_set(tmp_path)
    (tmp_path / "shard-00000.h5").unlink()
    (tmp_path / "shard-00001.h5").write_bytes(b"no HDF5 at all")
    with h5py.File(tmp_path / "shard-00003.h5", "w") as file:
        file["other/x"] = np.zeros(3)
    dataset = open_samples(tmp_path)
    with pytest.raises(DataFileError, match=r"no data file \S+shard-00000\.h5"):
        dataset[0]
    with pytest.raises(DataFileError, match=r"shard-00001\.h5 cannot be opened"):
        dataset[5]
    with pytest.raises(SchemaMismatchError, match=r"climate/data expected .* among \['other/x'\]"):
        dataset[15]
    dataset.close()

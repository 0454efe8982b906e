"""What verify finds, what the policies make of it, what the command prints."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.zoo.data.shardset import SCHEMA, make_sample, write_set
from zoo.data import verify as verify_module
from zoo.data.hdf5 import HDF5Samples, open_samples
from zoo.data.manifest import read_manifest
from zoo.data.verify import verify, without_bad
from zoo.errors import BadSampleError, EmptySplitError, TruncatedFileError


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """Shard 0: sample 2 has a NaN, 4 a label 9; 1 is cut; 2 is of another schema; 3 is missing."""
    write_set(tmp_path)
    with h5py.File(tmp_path / "shard-00000.h5", "r+") as file:
        file["climate/data"][2, 1, 1, 1] = np.nan
        file["climate/labels_0"][4, 0, 0] = 9
    cut = tmp_path / "shard-00001.h5"
    with cut.open("r+b") as file:
        file.truncate(cut.stat().st_size - 8)
    size = (tmp_path / "shard-00002.h5").stat().st_size
    with h5py.File(tmp_path / "shard-00002.h5", "w") as file:
        file["other"] = np.zeros(1)
    with (tmp_path / "shard-00002.h5").open("r+b") as file:
        file.truncate(size)
    (tmp_path / "shard-00003.h5").unlink()
    return tmp_path


def findings(folder: Path, level: str) -> list[tuple[int, int | None, str]]:
    manifest = read_manifest(folder)
    return [tuple(f[:3]) for of_file in verify(folder, manifest, level) for f in of_file]


def test_each_level_finds_its_kind_of_damage(damaged: Path) -> None:
    missing, cut = (3, None, "DataFileError"), (1, None, "TruncatedFileError")
    foreign = (2, None, "SchemaMismatchError")
    assert findings(damaged, "off") == []
    assert findings(damaged, "sizes") == [cut, missing]
    assert findings(damaged, "open") == [cut, foreign, missing]
    bad = [(0, 2, "BadSampleError"), (0, 4, "BadSampleError")]
    assert findings(damaged, "full") == [*bad, cut, foreign, missing]


def test_changed_bytes_are_found_by_the_checksum(tmp_path: Path) -> None:
    write_set(tmp_path)
    with h5py.File(tmp_path / "shard-00001.h5", "r+") as file:
        file["climate/data"][0, 0, 0, 0] = 1.0
    assert findings(tmp_path, "open") == []
    assert findings(tmp_path, "full") == [(1, None, "DataFileError")]


def test_policies(damaged: Path) -> None:
    manifest = read_manifest(damaged)
    found = [f for of_file in verify(damaged, manifest, "full") for f in of_file]
    every = np.arange(manifest.n_samples)
    good = [0, 1, 3, 20, 21, 22]
    assert without_bad(every, manifest, found, "skip").tolist() == good
    replaced = without_bad(every, manifest, found, "substitute")
    assert replaced.tolist() == [0, 1, 3, 3, *[20] * 17, 21, 22]
    with pytest.raises(BadSampleError, match=r"sample 2 of climate/data expected finite numbers"):
        without_bad(every, manifest, found, "raise")
    with pytest.raises(TruncatedFileError, match=r"shard-00001"):
        without_bad(np.arange(5, 8), manifest, found, "raise")
    with pytest.raises(EmptySplitError, match="all 3 samples of the split are bad"):
        without_bad(np.arange(5, 8), manifest, found, "skip")
    assert without_bad(np.asarray(good), manifest, found, "raise").tolist() == good


def test_substitutes_at_reading_time_are_good_samples(damaged: Path) -> None:
    manifest = read_manifest(damaged)
    dataset = HDF5Samples(damaged, manifest, on_bad="substitute", check_values=True)
    arrays = {name: np.empty(shape, dtype) for name, (shape, dtype) in dataset.shapes(4).items()}
    dataset.read_batch([1, 2, 4, 10], arrays)
    assert arrays["image"][:, 0, 0, 0].tolist() == [10, 30, 200, 200]
    dataset.on_bad = "raise"
    with pytest.raises(BadSampleError, match="labels 0 to 2, got 0 to 9"):
        dataset.read_batch([4], {name: array[:1] for name, array in arrays.items()})
    dataset.close()


def test_the_command(damaged: Path, shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verify_module.main([str(shards)])
    assert "5 files, 23 samples" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="1"):
        verify_module.main([str(damaged)])
    assert "level full: 5 bad" in capsys.readouterr().out


def test_the_command_indexes_foreign_files(tmp_path: Path) -> None:
    for index in range(3):
        with h5py.File(tmp_path / f"data-{index}.h5", "w") as file:
            for name, field in SCHEMA.items():
                file[field.dataset] = make_sample(index)[name]
    verify_module.main([str(tmp_path), "--write", "--files", "data-*.h5"])
    dataset = open_samples(tmp_path)
    assert len(dataset) == 3
    assert all(entry.sha256 for entry in dataset.manifest.files)
    assert dataset[2]["climate.data"][0, 0, 1] == 21
    dataset.close()

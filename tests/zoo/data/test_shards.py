"""Shards: the same bytes however they are made, killed or not; nothing half-written counts."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.zoo.data.shardset import N_SAMPLES, SCHEMA, make_sample, write_set
from zoo.data.manifest import read_manifest, sha256_of
from zoo.data.shards import ShardWriter, generate_shards
from zoo.errors import DataFileError, DiskFullError, SchemaMismatchError


def contents(folder: Path) -> dict[str, str]:
    return {path.name: sha256_of(path) for path in sorted(folder.iterdir())}


def test_manifest_lists_what_lies_there(shards: Path) -> None:
    manifest = read_manifest(shards)
    assert manifest.n_samples == N_SAMPLES
    assert [entry.n_samples for entry in manifest.files] == [5, 5, 5, 5, 3]
    for entry in manifest.files:
        path = shards / entry.path
        assert (entry.nbytes, entry.sha256) == (path.stat().st_size, sha256_of(path))
    assert len(list(shards.iterdir())) == len(manifest.files) + 1


def test_processes_write_the_same_bytes(shards: Path, tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, SCHEMA, N_SAMPLES, 5)
    generate_shards(writer, make_sample, n_processes=2)
    assert contents(tmp_path) == contents(shards)


def test_what_is_there_is_not_made_again(shards: Path, tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, SCHEMA, N_SAMPLES, 5)
    writer.write(1, map(make_sample, writer.samples_of(1)))
    made: list[int] = []

    def counted(index: int) -> dict[str, np.ndarray]:
        made.append(index)
        return make_sample(index)

    generate_shards(writer, counted)
    assert not set(made) & set(writer.samples_of(1))
    assert contents(tmp_path) == contents(shards)
    generate_shards(writer, counted)
    assert len(made) == N_SAMPLES - 5


_STUCK_GENERATOR = """
import sys, time
from pathlib import Path
from tests.zoo.data.shardset import SCHEMA, N_SAMPLES, make_sample
from zoo.data.shards import ShardWriter, generate_shards
def stuck_in_shard_2(index):
    if index >= 10:
        time.sleep(600)
    return make_sample(index)
generate_shards(ShardWriter(Path(sys.argv[1]), SCHEMA, N_SAMPLES, 5), stuck_in_shard_2)
"""


def test_a_killed_generator_resumes_to_the_same_bytes(shards: Path, tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", _STUCK_GENERATOR, str(tmp_path)])
    deadline = time.monotonic() + 60
    while not (tmp_path / "shard-00001.h5").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait(10)
    assert (tmp_path / "shard-00001.h5").exists()
    assert not (tmp_path / "manifest.json").exists()
    assert contents(tmp_path) != contents(shards)
    write_set(tmp_path)
    assert contents(tmp_path) == contents(shards)


def test_half_a_record_that_a_kill_has_left_is_written_over(shards: Path, tmp_path: Path) -> None:
    (tmp_path / ".shard-00000.h5.partial.json").write_text('{"entry"')
    write_set(tmp_path)
    assert contents(tmp_path) == contents(shards)


def test_another_data_set_in_the_folder_is_refused(tmp_path: Path) -> None:
    write_set(tmp_path, n_samples=4)
    with pytest.raises(SchemaMismatchError, match=r"expected n_samples 9, got 4"):
        ShardWriter(tmp_path, SCHEMA, 9, 5).open_shards()


def test_too_few_samples_leave_no_file(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, SCHEMA, 5, 5)
    with pytest.raises(DataFileError, match="expected 5 samples, got 2"):
        writer.write(0, [make_sample(0), make_sample(1)])
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DataFileError, match=r"1 are missing \(first: shard-00000\.h5"):
        writer.finish()


def test_a_sample_that_does_not_fit_is_named(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, SCHEMA, 1, 1)
    wrong = make_sample(0) | {"label": np.zeros((6, 4), np.uint8)}
    with pytest.raises(
        DataFileError, match=r"field label expected uint8 \(6, 5\), got uint8 \(6, 4"
    ):
        writer.write(0, [wrong])


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_is_named(tmp_path: Path) -> None:
    # The record of the finished shard is what does not fit.
    writer = ShardWriter(tmp_path, SCHEMA, 5, 5)
    (tmp_path / ".shard-00000.partial.h5").symlink_to("/dev/full")
    with pytest.raises((DiskFullError, DataFileError), match="cannot write"):
        writer.write(0, map(make_sample, range(5)))


@pytest.mark.parametrize("options", [{"chunked": True}, {"compression": "lzf"}])
def test_chunks_hold_one_sample_each(tmp_path: Path, options: dict) -> None:
    writer = ShardWriter(tmp_path, SCHEMA, 3, 3, attributes={"seed": 7}, **options)
    generate_shards(writer, make_sample)
    with h5py.File(tmp_path / "shard-00000.h5") as file:
        assert file["climate/data"].chunks == (1, 6, 5, 4)
        assert (file.attrs["seed"], file.attrs["first_sample"]) == (7, 0)
    assert read_manifest(tmp_path).attributes == {"seed": 7}

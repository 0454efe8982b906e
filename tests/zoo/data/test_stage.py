"""Staging: each byte read once, whole and checked files only, and a full disk loses nothing."""

from __future__ import annotations

import shutil
from collections import Counter, namedtuple
from pathlib import Path

import h5py
import pytest

from tests.zoo.data.shardset import write_set
from zoo.data import stage
from zoo.data.hdf5 import open_samples
from zoo.data.manifest import read_manifest, sha256_of
from zoo.data.sampler import World
from zoo.data.stage import copy_files, files_of_node, files_to_copy, require_room
from zoo.errors import DataFileError, DiskFullError, TruncatedFileError

ALL = range(5)


def test_ranks_of_a_node_share_out_its_files(shards: Path) -> None:
    manifest = read_manifest(shards)
    worlds = [World(4, rank, 2) for rank in range(4)]
    copies = [files_to_copy(manifest, "node", world) for world in worlds]
    assert sorted(copies[0] + copies[1]) == sorted(copies[2] + copies[3]) == list(ALL)
    copies = [files_to_copy(manifest, "shard", world) for world in worlds]
    assert Counter(number for share in copies for number in share) == Counter(ALL)
    assert files_of_node(manifest, "shard", worlds[3]) == [1, 3]


def test_copies_are_whole_and_made_once(shards: Path, tmp_path: Path) -> None:
    manifest = read_manifest(shards)
    assert require_room(shards, tmp_path, manifest, ALL) == manifest.nbytes
    assert copy_files(shards, tmp_path, manifest, ALL) == manifest.nbytes
    assert [sha256_of(tmp_path / e.path) for e in manifest.files] == [
        e.sha256 for e in manifest.files
    ]
    (tmp_path / "shard-00003.h5").unlink()
    assert copy_files(shards, tmp_path, manifest, ALL) == manifest.files[3].nbytes
    assert copy_files(shards, tmp_path, manifest, ALL) == 0


def test_too_little_room_is_said_before_the_first_copy(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10_000, 0, 9_000))
    with pytest.raises(DiskFullError, match="too little room"):
        require_room(shards, tmp_path, read_manifest(shards), ALL)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_keeps_what_is_whole(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = read_manifest(shards)
    copy_files(shards, tmp_path, manifest, [0])
    (tmp_path / ".shard-00001.h5.partial").symlink_to("/dev/full")
    with pytest.raises(DiskFullError, match=r"cannot write \S+shard-00001\.h5: .*No space left"):
        copy_files(shards, tmp_path, manifest, ALL, n_threads=1)
    assert (tmp_path / "shard-00000.h5").exists()
    assert not list(tmp_path.glob(".*")), "half a file was left"
    copy_files(shards, tmp_path, manifest, ALL)
    assert sha256_of(tmp_path / "shard-00001.h5") == manifest.files[1].sha256


def test_what_is_not_as_the_manifest_says_does_not_arrive(tmp_path: Path) -> None:
    root, target = tmp_path / "root", tmp_path / "target"
    manifest = write_set(root)
    with h5py.File(root / "shard-00000.h5", "r+") as file:
        file["climate/data"][0, 0, 0, 0] = 1.0
    with (root / "shard-00001.h5").open("r+b") as file:
        file.truncate(4000)
    (root / "shard-00002.h5").unlink()
    for number, kind, text in (
        (0, DataFileError, "has changed, or was read wrongly"),
        (1, TruncatedFileError, "expected .* bytes, as its manifest says, got 4000"),
        (2, DataFileError, "cannot read"),
    ):
        with pytest.raises(kind, match=text):
            copy_files(root, target, manifest, [number])
    assert list(target.iterdir()) == []


def test_the_command(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage.main([str(shards), str(tmp_path), "--part", "1/2"])
    assert "2 of 5 files" in capsys.readouterr().out
    stage.main([str(shards), str(tmp_path)])
    dataset = open_samples(tmp_path)
    assert dataset[22]["image"][1, 0, 0] == 221
    dataset.close()

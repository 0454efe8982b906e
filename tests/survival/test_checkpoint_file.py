"""Checkpoint files: whole or absent, checked bit for bit, read without running anything."""

from __future__ import annotations

import os
import pickle
import resource
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_gradsched import checkpoint_file
from lightning_gradsched.checkpoint_io import SafeCheckpointIO
from lightning_gradsched.errors import CheckpointError
from lightning_gradsched.rank_state import rng_state, set_rng_state


def content(value: float = 1.0) -> dict[str, Any]:
    weight = torch.full((256, 64), value)
    return {
        "state_dict": {"a": weight, "tied": weight},
        "step": 3,
        "loops": [(1, {"b": weight[0]})],
    }


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    checkpoint_file.write(path, content())
    assert checkpoint_file.fault_of(path) == ""
    read = checkpoint_file.read(path)
    assert torch.equal(read["state_dict"]["a"], torch.ones(256, 64))
    assert read["state_dict"]["a"] is read["state_dict"]["tied"]
    assert read["loops"][0][0] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_state_dict_keeps_what_it_has_besides_keys() -> None:
    state = nn.BatchNorm1d(2).state_dict()
    copied = checkpoint_file.in_memory(state)
    assert copied._metadata == state._metadata
    assert copied["weight"].data_ptr() != state["weight"].data_ptr()


@pytest.mark.parametrize("what", ["truncated", "flipped", "empty", "text"])
def test_damage_anywhere_is_found(what: str, tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    checkpoint_file.write(path, content())
    damage(path, what)
    assert checkpoint_file.fault_of(path) != ""
    with pytest.raises(
        CheckpointError, match=r"last\.ckpt cannot be read: .*Use another checkpoin"
    ):
        checkpoint_file.read(path)


def damage(path: Path, what: str) -> None:
    data = bytearray(path.read_bytes())
    if what == "truncated":
        data = data[: len(data) // 2]
    elif what == "flipped":  # one bit, in a tensor's bytes: torch.load does not see it
        data[len(data) // 2] ^= 1
    path.write_bytes({"empty": b"", "text": b"not a checkpoint"}.get(what, bytes(data)))


class Bomb:
    def __reduce__(self) -> Any:
        return (os.mkdir, ("bomb",))


def test_nothing_in_a_checkpoint_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "bomb": Bomb()}, "evil.ckpt")
    Path("plain.ckpt").write_bytes(pickle.dumps(Bomb()))
    for name in ("evil.ckpt", "plain.ckpt"):
        with pytest.raises(CheckpointError, match=name):
            SafeCheckpointIO().load_checkpoint(name)
    assert not Path("bomb").exists()


def test_sizes_are_checked_before_memory_is_given(tmp_path: Path) -> None:
    path = tmp_path / "huge.ckpt"
    torch.save({"a": torch.zeros(1).expand(10**9, 1000)}, path)
    with pytest.raises(CheckpointError, match=r"claims a tensor of shape \[1000000000, 1000\]"):
        checkpoint_file.read(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", bytes(10**7))
    assert "compressed members" in checkpoint_file.fault_of(path)


def test_a_storage_that_claims_more_than_its_member_is_no_window_into_memory(
    tmp_path: Path,
) -> None:
    path = tmp_path / "window.ckpt"
    torch.save({"a": torch.arange(64, dtype=torch.float64)}, path)
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    (name,) = (n for n in members if n.endswith("data.pkl"))
    assert members[name].count(b"K@") == 2, "64: of the storage, and of the tensor's shape"
    members[name] = members[name].replace(b"K@", b"M\xff\xff")
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    with pytest.raises(CheckpointError, match=r"window\.ckpt"):
        checkpoint_file.read(path)


def test_files_of_a_name_that_were_there_before_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    io = SafeCheckpointIO(keep=3)
    for value in range(5):
        io.save_checkpoint({"value": value}, path)
    io.teardown()
    names = ["last.before1.ckpt", "last.before2.ckpt", "last.ckpt"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    assert [checkpoint_file.read(tmp_path / name)["value"] for name in names] == [3, 2, 4]
    io.remove_checkpoint(path)
    io.teardown()
    assert list(tmp_path.iterdir()) == []


def test_what_training_changes_after_the_call_does_not_reach_the_file(tmp_path: Path) -> None:
    io = SafeCheckpointIO()
    state = content()
    for step in range(4):
        state["state_dict"]["a"].fill_(step)
        io.save_checkpoint(state, tmp_path / f"{step}.ckpt")
    state["state_dict"]["a"].fill_(-1.0)
    io.flush()
    for step in range(4):
        read = checkpoint_file.read(tmp_path / f"{step}.ckpt")["state_dict"]["a"]
        assert torch.equal(read, torch.full((256, 64), float(step)))
    io.teardown()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("a small file system needs root and mount")
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("no file systems can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_the_last_good_one(small_disk: Path) -> None:
    io = SafeCheckpointIO()
    path = small_disk / "last.ckpt"
    io.save_checkpoint({"w": torch.zeros(100_000)}, path)
    io.save_checkpoint({"w": torch.zeros(400_000)}, path)
    io.remove_checkpoint(path)  # as a callback removes what it has a newer one of
    with pytest.raises(CheckpointError, match=r"last\.ckpt could not be written: .*No space left"):
        io.flush()
    assert torch.equal(checkpoint_file.read(path)["w"], torch.zeros(100_000))
    io.teardown()
    assert [p.name for p in small_disk.iterdir() if p.name.startswith(".")] == []


def test_a_limit_on_file_size_is_an_error_too(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    io = SafeCheckpointIO(in_background=False)
    path = tmp_path / "last.ckpt"
    io.save_checkpoint({"w": torch.zeros(10)}, path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(CheckpointError, match="File too large"):
            io.save_checkpoint({"w": torch.zeros(100_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert torch.equal(checkpoint_file.read(path)["w"], torch.zeros(10))
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


KILLED = """
import os, sys
from pathlib import Path
from lightning_gradsched import files
with files.written_for_good(Path(sys.argv[1])) as file:
    file.write(bytes(10**6)); file.flush()
    os.kill(os.getpid(), 9)
"""


def test_a_writer_that_is_killed_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    path.write_text("good")
    done = subprocess.run([sys.executable, "-c", KILLED, path], timeout=120)
    assert done.returncode == -9
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]
    assert path.read_text() == "good"


def draws() -> list[float]:
    import random

    import numpy as np

    return [random.gauss(0, 1), float(np.random.randn()), float(torch.randn(1)), random.random()]


def test_generators_go_on_where_they_were(tmp_path: Path) -> None:
    draws()  # so that a Gaussian is kept back
    device = torch.device("cpu")
    checkpoint_file.write(tmp_path / "rng.ckpt", rng_state(device))
    wanted = [draws() for _ in range(3)]
    set_rng_state(checkpoint_file.read(tmp_path / "rng.ckpt"), device)
    assert [draws() for _ in range(3)] == wanted


def test_values_of_other_kinds_are_not_lost() -> None:
    sparse = torch.eye(3).to_sparse()
    named: Any = torch.ones(2, 3).max(1)
    copied = checkpoint_file.in_memory(
        {"s": sparse, "n": named, "t": (1, [2]), "e": torch.empty(0)}
    )
    assert isinstance(copied["s"], Tensor)
    assert copied["s"].is_sparse
    assert type(copied["n"]) is type(named)
    assert copied["t"] == (1, [2])

"""`resume=auto`: the newest whole checkpoint of a run folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from zoo.checkpoint import newest_checkpoint, read_checkpoint
from zoo.errors import CheckpointError


def save(path: Path, step: int) -> Path:
    path.parent.mkdir(exist_ok=True)
    torch.save({"state_dict": {"w": torch.full((1000,), float(step))}}, path)
    os.utime(path, (1000 + step, 1000 + step))
    return path


def flip_a_bit(path: Path) -> None:
    """In the middle of a tensor, where torch.load does not see it; the file's time stays."""
    data, when = bytearray(path.read_bytes()), path.stat().st_mtime
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, (when, when))


def test_nothing_to_resume_from(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "never_run") is None
    assert newest_checkpoint(tmp_path) is None


def test_the_newest_is_taken_wherever_it_lies(tmp_path: Path) -> None:
    save(tmp_path / "checkpoints" / "best.ckpt", 1)
    newest = save(tmp_path / "hpc_ckpt_1.ckpt", 2)
    assert newest_checkpoint(tmp_path) == newest


def test_a_damaged_one_is_passed_over_with_both_named(tmp_path: Path) -> None:
    good = save(tmp_path / "a.ckpt", 1)
    bad = save(tmp_path / "b.ckpt", 2)
    flip_a_bit(bad)
    with pytest.warns(UserWarning, match=rf"{bad} .*checksum.* Resuming from {good}\."):
        assert newest_checkpoint(tmp_path) == good
    flip_a_bit(good)
    with pytest.raises(CheckpointError, match=rf"no checkpoint in {tmp_path} is whole: {bad}"):
        newest_checkpoint(tmp_path)


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    path = save(tmp_path / "a.ckpt", 1)
    flip_a_bit(path)
    assert torch.load(path, weights_only=True), "torch takes it"
    with pytest.raises(CheckpointError, match=r"a\.ckpt \(\d+ bytes\) cannot be read\. .*checksum"):
        read_checkpoint(path)

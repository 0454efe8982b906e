"""Checkpoints that are missing, damaged or of another network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from zoo.callback.store_config import CONFIG_KEY, StoreConfig
from zoo.checkpoint import config_of, read_checkpoint, require_fit
from zoo.errors import CheckpointError
from zoo.net.edsr import EDSR


def _saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*absent\.ckpt"):
        read_checkpoint(tmp_path / "absent.ckpt")


@pytest.mark.parametrize("n_bytes_kept", [0, 10, 2000])
def test_truncated(tmp_path: Path, n_bytes_kept: int) -> None:
    path = _saved(tmp_path / "half.ckpt", {"state_dict": EDSR(4, 1).state_dict()})
    path.write_bytes(path.read_bytes()[:n_bytes_kept])
    with pytest.raises(CheckpointError, match=rf"half\.ckpt \({n_bytes_kept} bytes\) cannot be"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "got"), [({"weights": 1}, r"the keys \['weights'\]"), ([1.0], "a list")]
)
def test_foreign(tmp_path: Path, content: Any, got: str) -> None:
    with pytest.raises(CheckpointError, match=rf"no checkpoint of a training\..*{got}"):
        read_checkpoint(_saved(tmp_path / "foreign.ckpt", content))


def test_weights_that_fit_pass() -> None:
    checkpoint = {"state_dict": EDSR(4, 1).state_dict()}
    require_fit(checkpoint, EDSR(4, 1), Path("x.ckpt"))
    EDSR(4, 1).load_state_dict(checkpoint["state_dict"], strict=True)


def test_other_width_names_the_first_parameters() -> None:
    checkpoint = {"state_dict": EDSR(8, 1).state_dict()}
    with pytest.raises(CheckpointError) as caught:
        require_fit(checkpoint, EDSR(4, 1), Path("x.ckpt"))
    message = str(caught.value)
    assert "head.weight expected [4, 3, 3, 3], got [8, 3, 3, 3]" in message
    assert "and 8 more" in message


def test_other_depth_names_what_is_missing() -> None:
    checkpoint = {"state_dict": EDSR(4, 1).state_dict()}
    missing = r"blocks\.1\.first\.weight expected \[4, 4, 3, 3\], got nothing"
    with pytest.raises(CheckpointError, match=missing):
        require_fit(checkpoint, EDSR(4, 2), Path("x.ckpt"))


def test_configuration_comes_back() -> None:
    checkpoint: dict[str, Any] = {}
    StoreConfig("data: {scale: 3}").on_save_checkpoint(None, None, checkpoint)
    assert config_of(checkpoint, Path("x.ckpt")).data.scale == 3


def test_checkpoint_without_configuration() -> None:
    with pytest.raises(CheckpointError, match=rf"x\.ckpt holds no configuration.*{CONFIG_KEY}"):
        config_of({"state_dict": {}}, Path("x.ckpt"))

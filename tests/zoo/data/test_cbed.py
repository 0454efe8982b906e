"""Generated diffraction: the same files however they come about, and what a rank gets of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from zoo.data import generate
from zoo.data.cbed import CbedBatch, CbedDataModule
from zoo.data.cbed_shards import CbedShards
from zoo.data.crystals import SIZES, make_sample
from zoo.data.manifest import Manifest
from zoo.errors import DataFileError, EmptySplitError, SchemaMismatchError, UserError

_FEW = CbedShards("tiny", seed=3, n_samples=(6, 2, 3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cbed")
    _FEW.generate(folder)
    return folder


def _module(folder: Path, **changes: object) -> CbedDataModule:
    options = {"size": "tiny", "seed": 3, "n_samples": (6, 2, 3), "batch_size": 2}
    return CbedDataModule(path=str(folder), **{**options, **changes})


def _checksums(manifest: Manifest) -> list[str | None]:
    return [entry.sha256 for entry in manifest.files]


def test_samples_are_those_of_their_index(folder: Path) -> None:
    test = _module(folder).test_dataloader().dataset
    assert len(test) == 3
    # After six for training and two for validation.
    expected = make_sample(SIZES["tiny"], seed=3, index=8)
    sample = test[0]
    assert isinstance(sample, CbedBatch)
    assert sample.cbed.dtype == torch.float32
    assert torch.equal(sample.cbed, expected.cbed)
    assert torch.equal(sample.potential, expected.potential)


def test_batches_cover_each_split_once(folder: Path) -> None:
    module = _module(folder)
    for loader, n_samples in (
        (module.train_dataloader(), 6),
        (module.val_dataloader(), 2),
        (module.test_dataloader(), 3),
    ):
        batches = [module.on_before_batch_transfer(batch, 0) for batch in loader]
        indices = torch.cat([batch.index for batch in batches])
        assert sorted(indices.tolist()) == list(range(n_samples))
        samples = [loader.dataset[int(index)] for index in indices]
        cbed = torch.cat([batch.cbed for batch in batches])
        assert cbed.shape[1:] == (64, 32, 32)
        # Compared after the last batch was handed out: buffers may not be reused under us.
        assert torch.equal(cbed, torch.stack([sample.cbed for sample in samples]))


def test_generating_again_changes_nothing(folder: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.h5")}
    _module(folder).prepare_data()
    assert {path.name: path.stat().st_mtime_ns for path in folder.glob("*.h5")} == before


def test_only_rank_0_generates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.pytorch.utilities import rank_zero_only

    monkeypatch.setattr(rank_zero_only, "rank", 1)
    module = _module(tmp_path / "elsewhere")
    module.prepare_data()
    assert not (tmp_path / "elsewhere").exists()
    with pytest.raises(DataFileError, match=r"1 of 1 shards are missing.*zoo.data.generate data"):
        module.train_dataloader()


def test_another_data_set_in_the_folder_is_refused(folder: Path) -> None:
    with pytest.raises(SchemaMismatchError, match="holds another data set"):
        replace(_FEW, seed=4).generate(folder)
    with pytest.raises(SchemaMismatchError, match="holds another data set"):
        _module(folder, size="small").prepare_data()


def test_a_second_generator_is_told_to_wait(tmp_path: Path) -> None:
    import fcntl

    with (tmp_path / ".generating").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process is generating in"):
            _FEW.generate(tmp_path)


def test_wrong_sizes_and_splits_are_named(folder: Path) -> None:
    with pytest.raises(UserError, match="no size 'vast'"):
        CbedShards("vast")
    with pytest.raises(UserError, match=r"Expected three numbers of 1 or more.*got \[5, 0, 1\]"):
        CbedShards("tiny", n_samples=(5, 0, 1))
    with pytest.raises(EmptySplitError):
        next(iter(_module(folder, batch_size=7).train_dataloader()))


def test_the_command_generates(
    program: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ("size=tiny", "seed=3", "dataset.n_samples=[6,2,3]", "n_processes=1")
    program(generate.main, "run", *overrides, f"folder={tmp_path / 'cbed'}")
    assert "11 samples in 1 shards, 2.9 MB" in capsys.readouterr().out
    assert _FEW.require(tmp_path / "cbed").n_samples == 11


@pytest.mark.slow
def test_a_killed_generator_run_again_gives_the_same_files(tmp_path: Path) -> None:
    shards = CbedShards("small", seed=1, n_samples=(10, 1, 1))
    expected = _checksums(shards.generate(tmp_path / "whole"))
    killed = tmp_path / "killed"
    command = [sys.executable, "-m", "zoo.data.generate", "size=small", "seed=1"]
    command += ["dataset.n_samples=[10,1,1]", "n_processes=2", f"folder={killed}"]
    _kill_after_the_first_shard(command, killed)
    n_before = len(list(killed.glob("shard-*.h5")))
    manifest = shards.generate(killed, n_processes=2)
    assert _checksums(manifest) == expected
    assert 1 <= n_before <= len(expected) == 4
    for entry in manifest.files:
        content = (killed / entry.path).read_bytes()
        assert content == (tmp_path / "whole" / entry.path).read_bytes()
    left = {path.name for path in killed.iterdir()}
    assert left == {"manifest.json", ".generating", *(entry.path for entry in manifest.files)}


def _kill_after_the_first_shard(command: list[str], folder: Path) -> None:
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    try:
        while not list(folder.glob("shard-*.h5")) and process.poll() is None:
            assert time.monotonic() < deadline, "no shard after 240 s"
            time.sleep(0.02)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

"""The data module on real ranks: resuming to the sample, and every kind of bad input by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tests.ranks import errors_of_ranks, run_ranks
from tests.zoo.data import jobs
from tests.zoo.data.jobs import SaveAt, datamodule, fit, fit_two, set_up
from tests.zoo.data.shardset import write_set
from zoo.errors import EmptySplitError, UserError

Seen = list[tuple[int, list[int]]]


def epochs(*ranks: Seen) -> dict[int, list[int]]:
    """The samples of each epoch, over all ranks."""
    every: dict[int, list[int]] = {}
    for seen in ranks:
        for epoch, indices in seen:
            every.setdefault(epoch, []).extend(indices)
    return every


# 23 samples in batches of 2: 11 steps an epoch. Within the second epoch, at its end, in its first.
@pytest.mark.parametrize("step", [14, 22, 3, 11])
@pytest.mark.parametrize("limit", [{"max_epochs": 3}, {"max_epochs": -1, "max_steps": 33}])
def test_a_resumed_fit_sees_what_it_would_have_seen(
    shards: Path, tmp_path: Path, step: int, limit: dict[str, int]
) -> None:
    path = tmp_path / "last.ckpt"
    straight, _, n_steps = fit(0, 1, shards, [], None, {}, **limit)
    first, _, _ = fit(0, 1, shards, [SaveAt(step, path)], None, {}, **limit)
    assert len(first) == step
    rest, _, n_resumed = fit(0, 1, shards, [], path, {}, **limit)
    assert first + rest == straight
    assert n_steps == n_resumed == 33


@pytest.mark.slow
def test_workers_that_read_ahead_do_not_move_the_position(shards: Path, tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    data = {"num_workers": 2, "prefetch": 3}
    straight, _, _ = fit(0, 1, shards, [], None, {})
    first, _, _ = fit(0, 1, shards, [SaveAt(14, path)], None, data)
    rest, _, _ = fit(0, 1, shards, [], path, data)
    assert first + rest == straight


class SaveOnException(SaveAt):
    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        trainer.save_checkpoint(self.path)


def test_a_batch_that_was_cut_off_is_trained_on(shards: Path, tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    straight, _, _ = fit(0, 1, shards, [], None, {})
    # Lightning ends the process on an interrupt; by then the checkpoint is there.
    with pytest.raises(SystemExit):
        fit(0, 1, shards, [SaveOnException(-1, path)], None, {}, fail_at=14)
    rest, _, _ = fit(0, 1, shards, [], path, {})
    assert rest == straight[14:]


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["global", "block"])
def test_two_ranks_go_on_where_one_was(shards: Path, tmp_path: Path, sampler: str) -> None:
    path = tmp_path / "last.ckpt"
    data = {"sampler": sampler, "sampler_block": 5, "batch_size": 1}
    first, _, _ = fit(0, 1, shards, [SaveAt(30, path)], None, data)
    (one, _, _), (two, _, _) = run_ranks(2, fit_two, shards, [], path, data)
    assert len(one) == len(two) == 8 + 11
    seen = epochs(first, one, two)
    assert sorted(seen[0]) == sorted(seen[1]) == list(range(23))
    assert len(set(seen[2])) == len(seen[2]) == 22


@pytest.mark.slow
def test_one_rank_goes_on_where_two_were(shards: Path, tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    data = {"batch_size": 1}
    ranks = run_ranks(2, fit_two, shards, [SaveAt(15, path)], None, data)
    rest, _, _ = fit(0, 1, shards, [], path, data)
    seen = epochs(*(seen for seen, _, _ in ranks), rest)
    assert len(set(seen[0])) == len(seen[0]) == 22
    assert sorted(seen[1]) == sorted(seen[2]) == list(range(23))
    assert len(rest) == 15 + 23


def test_validation_sees_each_sample_once_on_any_rank(shards: Path) -> None:
    data = {"split": (0.5, 0.5, 0), "batch_size": 3}
    ranks = run_ranks(2, _fit_once, shards, data)
    samples = datamodule(shards, **data)
    samples.setup("fit")
    validated = sorted(index for _, validated, _ in ranks for index in validated)
    assert validated == list(range(len(samples.samples["val"])))


def _fit_once(rank: int, root: Path, data: dict[str, Any]) -> Any:
    return fit(rank, 2, root, [], None, data, max_epochs=1)


def _errors(root: Path, **data: Any) -> list[str]:
    messages = errors_of_ranks(2, set_up, root, data)
    kinds = {message.partition(":")[0] for message in messages}
    assert len(kinds) == 1, messages
    return messages


def test_bad_files_are_named_on_every_rank(tmp_path: Path) -> None:
    write_set(tmp_path)
    cut = tmp_path / "shard-00001.h5"
    with cut.open("r+b") as file:
        file.truncate(cut.stat().st_size - 8)
    for message in _errors(tmp_path):
        assert message.startswith(f"TruncatedFileError: {cut} is truncated. Expected")
    cut.unlink()
    for message in _errors(tmp_path):
        assert message.startswith(f"DataFileError: no data file {cut}.")
    with h5py.File(cut, "w") as file:
        file["other"] = np.zeros(1)
    for message in _errors(tmp_path, verify="open"):
        assert "shard-00001.h5" in message


def test_nan_is_named_before_or_while_training_on_every_rank(tmp_path: Path) -> None:
    write_set(tmp_path)
    with h5py.File(tmp_path / "shard-00003.h5", "r+") as file:
        file["climate/data"][3, 1, 1, 1] = np.nan
    for options in ({"verify": "full"}, {"verify": "off", "check_values": True}):
        for message in _errors(tmp_path, **options):
            assert "BadSampleError" in message
            assert "shard-00003.h5: sample 3 of climate/data expected finite numbers" in message


@pytest.mark.parametrize(("policy", "n_steps"), [("skip", 4), ("substitute", 5)])
def test_policies_keep_the_ranks_in_step(tmp_path: Path, policy: str, n_steps: int) -> None:
    write_set(tmp_path)
    (tmp_path / "shard-00001.h5").unlink()
    seen = run_ranks(2, set_up, tmp_path, {"on_bad": policy})
    assert [len(indices) for indices in seen] == [2 * n_steps, 2 * n_steps]
    found = run_ranks(2, set_up, tmp_path, {"on_bad": "substitute", "verify": "off"})
    assert [len(indices) for indices in found] == [10, 10]


def test_empty_splits_and_too_few_samples_are_named_on_every_rank(tmp_path: Path) -> None:
    for message in _errors(tmp_path / "nothing"):
        assert "EmptySplitError" in message
        assert "no data file in" in message
    write_set(tmp_path, n_samples=3, samples_per_shard=2)
    for message in _errors(tmp_path):
        assert message.startswith(
            "EmptySplitError: expected at least 4 samples for a step (2 ranks"
        )
    for message in _errors(tmp_path, split=(0.01, 0.9, 0)):
        assert "the split chose none" in message


@pytest.mark.parametrize("mode", ["node", "shard"])
def test_staged_files_are_what_is_read(shards: Path, tmp_path: Path, mode: str) -> None:
    data = {"stage": mode, "stage_folder": str(tmp_path), "sampler": "node", "batch_size": 1}
    seen = run_ranks(2, set_up, shards, data)
    assert len({index for indices in seen for index in indices}) == 22
    assert len(list(tmp_path.glob("*.h5"))) == 5


def _set_up_on_a_full_disk(rank: int, root: Path, data: dict[str, Any]) -> Any:
    import shutil
    from collections import namedtuple

    # Rank 1's disk alone is full: rank 0 must hear of it.
    if rank == 1:
        usage = namedtuple("usage", "total used free")
        shutil.disk_usage = lambda path: usage(10_000, 0, 9_000)
    return set_up(rank, root, data)


def test_a_full_disk_is_named_on_every_rank(shards: Path, tmp_path: Path) -> None:
    data = {"stage": "node", "stage_folder": str(tmp_path)}
    messages = errors_of_ranks(2, _set_up_on_a_full_disk, shards, data)
    assert messages[1].startswith("DiskFullError: ")
    assert messages[0].startswith(f"DiskFullError: on rank 1: {tmp_path} has too little room")
    assert list(tmp_path.iterdir()) == []


def test_counters_reach_the_logger(shards: Path) -> None:
    run = jobs.trainer(1, [], max_epochs=1)
    run.fit(jobs.Recorder(), datamodule(shards))
    assert run.callback_metrics["data/samples_per_s"] > 0
    assert run.callback_metrics["data/GB_per_s"] > 0
    assert 0 <= run.callback_metrics["data/wait_share"] <= 1


def test_arguments_are_checked(shards: Path) -> None:
    for options, text in (
        ({"stage": "disk"}, "data.stage: expected off or node or shard, got 'disk'"),
        ({"on_bad": "ignore"}, "data.on_bad: expected raise or skip or substitute"),
        ({"stage": "shard"}, "data.sampler: expected node with data.stage=shard"),
        ({"stage": "node"}, "data.stage_folder: expected a folder"),
    ):
        with pytest.raises(UserError, match=text):
            datamodule(shards, **options)
    module = datamodule(shards, split=(0.01, 0.9, 0))
    with pytest.raises(EmptySplitError, match="the split chose none"):
        module.setup("fit")

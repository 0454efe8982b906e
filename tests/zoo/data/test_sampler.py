"""Samplers: each sample once, equal steps, and the same after a resume with other ranks."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from zoo.data.sampler import EpochBatches, ExactBatches, World, split_blocks
from zoo.errors import EmptySplitError, ResumeError, UserError

N_SAMPLES = 103
FILE_OF_SAMPLE = np.arange(N_SAMPLES) // 10
KINDS = {
    "global": {},
    "node": {"kind": "node", "file_of_sample": FILE_OF_SAMPLE},
    "block": {"kind": "block", "block_size": 10},
}


def all_ranks(world_size: int, n_nodes: int, batch_size: int, **options) -> list[EpochBatches]:
    return [
        EpochBatches(N_SAMPLES, batch_size, World(world_size, rank, n_nodes), **options)
        for rank in range(world_size)
    ]


def take(samplers: list[EpochBatches], n_steps: int | None = None) -> list[int]:
    """What the ranks consume in so many steps, or to the epoch's end."""
    lists = [sampler.batches_left()[:n_steps] for sampler in samplers]
    assert len({len(batches) for batches in lists}) == 1, "ranks make unlike numbers of steps"
    for sampler, batches in zip(samplers, lists, strict=True):
        assert all(len(batch) == sampler.batch_size for batch in batches)
        for _ in batches:
            sampler.advance()
    return np.concatenate([np.concatenate(batches) for batches in lists if batches]).tolist()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("world_size", "n_nodes"), [(1, 1), (4, 1), (4, 2), (6, 3)])
def test_an_epoch_has_each_sample_at_most_once(kind: str, world_size: int, n_nodes: int) -> None:
    samplers = all_ranks(world_size, n_nodes, 2, **KINDS[kind])
    seen = take(samplers)
    assert len(seen) == len(set(seen)) == len(samplers[0]) * 2 * world_size
    if kind != "node":
        assert len(seen) == N_SAMPLES - N_SAMPLES % (2 * world_size)


@pytest.mark.parametrize("kind", KINDS)
def test_repeating_the_tail_leaves_nothing_out(kind: str) -> None:
    seen = Counter(take(all_ranks(4, 2, 3, tail="repeat", **KINDS[kind])))
    assert set(seen) == set(range(N_SAMPLES))
    assert max(seen.values()) <= 2


def test_epochs_differ_and_seeds_repeat() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        (sampler,) = all_ranks(1, 1, 1, seed=seed)
        sampler.set_epoch(epoch)
        return take([sampler])

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(*key)) for key in ((0, 0), (0, 1), (1, 0))}) == 3
    assert take(all_ranks(1, 1, 1, shuffle=False)) == list(range(N_SAMPLES))


def test_a_node_reads_its_own_files_only() -> None:
    for sampler in all_ranks(4, 2, 2, **KINDS["node"]):
        node = sampler.world.rank // 2
        files = {FILE_OF_SAMPLE[index] for batch in sampler.batches_left() for index in batch}
        assert files <= {file for file in range(11) if file % 2 == node}
        assert len(files) >= 4


def test_blocks_stay_together() -> None:
    (sampler,) = all_ranks(1, 1, 1, **KINDS["block"])
    blocks = [index // 10 for index in take([sampler])]
    changes = sum(a != b for a, b in pairwise(blocks))
    assert changes == 10
    assert blocks != sorted(blocks)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tail", ["drop", "repeat"])
def test_resumed_in_the_middle_is_as_never_stopped(kind: str, tail: str) -> None:
    options = KINDS[kind] | {"tail": tail, "seed": 3}
    straight, stopped, resumed = (all_ranks(4, 2, 2, **options) for _ in range(3))
    whole = take(straight)
    first = take(stopped, 5)
    states = [sampler.state_dict() for sampler in stopped]
    assert all(state == states[0] for state in states)
    for sampler in resumed:
        sampler.load_state_dict(states[0])
        sampler.set_epoch(0)
        assert (sampler.n_steps_done, sampler.n_steps_left()) == (5, len(sampler) - 5)
    assert sorted(first + take(resumed)) == sorted(whole)


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_with_other_ranks_nodes_and_batches_each_sample_comes_once(kind: str) -> None:
    options = KINDS[kind] | {"seed": 5}
    ranks = all_ranks(4, 2, 3, **options)
    seen = take(ranks, 2)
    for world_size, n_nodes, batch_size, n_steps in ((2, 1, 2, 4), (3, 3, 1, 6), (1, 1, 1, None)):
        state = ranks[0].state_dict()
        ranks = all_ranks(world_size, n_nodes, batch_size, **options)
        for sampler in ranks:
            sampler.load_state_dict(state)
        seen += take(ranks, n_steps)
    assert sorted(seen) == list(range(N_SAMPLES))
    assert [leg.n_steps for leg in ranks[0].legs] == [2, 4, 6, N_SAMPLES - 24 - 16 - 18]


def test_another_epoch_or_a_rewind_begins_at_the_beginning() -> None:
    (sampler,) = all_ranks(1, 1, 1)
    whole = take([sampler], 10) + take([sampler])
    sampler.set_epoch(0)
    assert sampler.n_steps_left() == 0
    sampler.rewind()
    assert take([sampler]) == whole
    sampler.set_epoch(1)
    assert sampler.n_steps_left() == N_SAMPLES


def test_a_position_in_other_data_is_refused() -> None:
    state = EpochBatches(50, 1).state_dict()
    with pytest.raises(ResumeError, match="within 50 samples, the data set has 103"):
        EpochBatches(N_SAMPLES, 1).load_state_dict(state)


def test_keys_may_tell_the_epoch() -> None:
    sampler = EpochBatches(4, 2, with_epoch=True, shuffle=False)
    sampler.set_epoch(7)
    assert [sampler.keys(batch) for batch in sampler.batches_left()] == [
        [(7, 0), (7, 1)],
        [(7, 2), (7, 3)],
    ]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
@pytest.mark.parametrize("n_samples", [4, 5, 7, 16, 103])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_validation_covers_each_sample_once(
    n_samples: int, batch_size: int, world_size: int
) -> None:
    samplers = [
        ExactBatches(n_samples, batch_size, World(world_size, r)) for r in range(world_size)
    ]
    batches = [batch for sampler in samplers for batch in sampler.batches_left()]
    assert sorted(np.concatenate(batches).tolist()) == list(range(n_samples))
    assert all(0 < len(batch) <= batch_size for batch in batches)
    n_steps = {len(sampler) for sampler in samplers}
    assert len(n_steps) == 1 or (batch_size == 1 and max(n_steps) - min(n_steps) == 1)


def test_validation_by_node_covers_each_sample_once() -> None:
    samplers = [ExactBatches(103, 3, World(4, rank, 2), FILE_OF_SAMPLE) for rank in range(4)]
    seen = np.concatenate([batch for sampler in samplers for batch in sampler.batches_left()])
    assert sorted(seen.tolist()) == list(range(103))
    assert {FILE_OF_SAMPLE[i] % 2 for batch in samplers[3].batches_left() for i in batch} == {1}


@pytest.mark.parametrize("rank", [0, 1, 2, 3])
def test_fewer_samples_than_ranks_is_named_on_every_rank(rank: int) -> None:
    with pytest.raises(EmptySplitError, match=r"at least 4 samples for a step \(4 ranks"):
        EpochBatches(3, 1, World(4, rank))
    with pytest.raises(EmptySplitError, match="at least 4 samples for a sample for each rank"):
        ExactBatches(3, 1, World(4, rank))


def test_arguments_are_checked() -> None:
    for options in ({"kind": "node"}, {"kind": "block"}, {"kind": "nodes"}):
        with pytest.raises(UserError, match="sampler"):
            EpochBatches(8, 1, **options)
    with pytest.raises(UserError, match="as many ranks on each node"):
        EpochBatches(8, 1, World(3, 0, 2))


def test_splits_never_tear_a_block() -> None:
    splits = split_blocks(N_SAMPLES, (0.6, 0.2, 0.2), block_size=4, seed=1)
    assert sorted(np.concatenate(splits).tolist()) == list(range(N_SAMPLES))
    blocks = [{int(index) // 4 for index in split} for split in splits]
    assert not blocks[0] & blocks[1]
    assert not (blocks[0] | blocks[1]) & blocks[2]
    again = split_blocks(N_SAMPLES, (0.6, 0.2, 0.2), block_size=4, seed=1)
    assert all(np.array_equal(a, b) for a, b in zip(splits, again, strict=True))

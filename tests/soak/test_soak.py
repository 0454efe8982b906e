"""A few episodes of the soak; ``make soak`` plays others for ten minutes."""

from __future__ import annotations

from itertools import chain

import pytest

from tests.soak.episodes import Episode, make_episode
from tests.soak.faults import ENDINGS, FAULTS
from tests.soak.nets import BLOCKS
from tests.soak.outcome import play

# Short ones that between them meet every kind of block, fault and ending.
QUICK_SEEDS = [244, 569]
SEEDS = [*QUICK_SEEDS, 1547, 290, 605, 2598, 1037, 3337, 71]


@pytest.mark.parametrize(
    "seed",
    [pytest.param(s, marks=() if s in QUICK_SEEDS else pytest.mark.slow) for s in SEEDS],
)
def test_an_episode_ends_as_it_should(seed: int) -> None:
    outcome = play(make_episode(seed))
    assert not outcome.failures, str(outcome)


# Short ones, one for each mode.
SEEDS_WITH_MODES = {"overlap_forward": 101, "gradient_lag": 5019, "shard_optimizer": 113}


@pytest.mark.slow
@pytest.mark.parametrize("mode", SEEDS_WITH_MODES)
def test_an_episode_with_a_mode_ends_as_it_should(mode: str) -> None:
    episode = make_episode(SEEDS_WITH_MODES[mode], with_modes=True)
    assert episode.settings[mode]
    outcome = play(episode)
    assert not outcome.failures, str(outcome)


def test_the_episodes_meet_every_kind_of_block_and_fault() -> None:
    episodes = [make_episode(seed) for seed in SEEDS]
    assert set(chain.from_iterable(e.blocks for e in episodes)) == set(BLOCKS)
    assert set(chain.from_iterable(e.faults for e in episodes)) == {*FAULTS, *ENDINGS}
    assert {e.settings["schedule"] for e in episodes} == {"static", "negotiated", "auto"}


def test_an_episode_is_a_function_of_its_seed() -> None:
    assert make_episode(1) == make_episode(1)
    assert isinstance(make_episode(2), Episode)
    assert make_episode(1) != make_episode(2)

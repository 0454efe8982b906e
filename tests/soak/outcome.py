"""Plays an episode on real ranks and judges how they ended."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tests.ranks import names_silent, outcomes_of_ranks
from tests.soak.episodes import N_RANKS, Episode
from tests.soak.run import run_episode

# What counts as a hang; an episode takes a few seconds.
LIMIT_S = 150.0


@dataclass(frozen=True, slots=True)
class Outcome:
    episode: Episode
    took_s: float
    n_steps: int
    faults: Counter[str]
    error_after_s: float  # the longest that a rank waited for one that was lost
    failures: tuple[str, ...]

    def __str__(self) -> str:
        line = f"seed {self.episode.seed}: {self.n_steps} steps in {self.took_s:.1f} s"
        if not self.failures:
            return f"{line}, ok"
        return "\n".join(
            [
                f"{line}, FAILED; repeat it by: python -m tests.soak --seed {self.episode.seed}"
                + " --modes" * self.episode.has_mode,
                str(self.episode),
                *self.failures,
            ]
        )


def play(episode: Episode, calibration_dir: str | None = None) -> Outcome:
    began_s = time.monotonic()
    results = outcomes_of_ranks(N_RANKS, run_episode, episode, calibration_dir, timeout_s=LIMIT_S)
    records = [value for how, value in results if how == "returned"]
    return Outcome(
        episode=episode,
        took_s=time.monotonic() - began_s,
        n_steps=max((record.n_steps for record in records), default=0),
        faults=records[0].faults if records else Counter(),
        error_after_s=max((record.error_after_s for record in records), default=0.0),
        failures=tuple(_failures(episode, results)),
    )


def _failures(episode: Episode, results: list[tuple[str, Any]]) -> list[str]:
    lost = episode.rank_at_end if episode.ending else None
    failures = [
        f"rank {rank} {how}: {value}"
        for rank, (how, value) in enumerate(results)
        if how != "returned" and rank != lost
    ]
    if lost is None or failures:
        return failures
    how, value = results[lost]
    if how != ("raised" if episode.ending == "raised" else "died"):
        failures.append(f"rank {lost} was to be {episode.ending} and {how}: {value}")
    errors = [value.error for rank, (_, value) in enumerate(results) if rank != lost]
    if not any(f"Rank {lost} " in error or names_silent(lost, error) for error in errors):
        failures.append(f"no rank names rank {lost}: {errors}")
    return failures


@dataclass
class Summary:
    n_episodes: int = 0
    n_steps: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    error_after_s: float = 0.0
    failed_seeds: list[int] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        self.n_episodes += 1
        self.n_steps += outcome.n_steps
        self.faults += outcome.faults
        self.error_after_s = max(self.error_after_s, outcome.error_after_s)
        if outcome.failures:
            self.failed_seeds.append(outcome.episode.seed)

    def __str__(self) -> str:
        kinds = ", ".join(f"{kind} {n}" for kind, n in sorted(self.faults.items()))
        ends = f"; a lost rank was named within {self.error_after_s:.1f} s"
        return (
            f"{self.n_episodes} episodes, {self.n_steps} steps on {N_RANKS} ranks;"
            f" by kind: {kinds}{ends if self.error_after_s else ''};"
            f" failed seeds: {self.failed_seeds or 'none'}"
        )

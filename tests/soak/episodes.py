"""What happens in an episode, drawn from its seed: net, settings, and a fault or none a step."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from tests.soak.faults import ENDINGS, FAULTS, allowed
from tests.soak.modes import MODES, drawn, with_mode
from tests.soak.nets import BLOCKS

N_RANKS = 4
# An ordinary wait ends in milliseconds; a loaded machine may make it seconds.
STALL_TIMEOUT_S = 30.0
# With a rank that is lost on purpose the others shall not take a minute to say so.
ENDING_STALL_TIMEOUT_S = 12.0
MEASURED_PLANNERS = ("optimal", "mg_wfbp", "auto")
PLANNERS = ("ddp", "fixed_size", "single", "per_tensor")
# Steps until a measured plan is in force: warm-up, measuring, and with "auto" the trials.
N_STEPS_TO_MEASURE = 30


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step. ``rank`` is the one at fault, ``places`` each rank's block at fault."""

    fault: str
    rank: int
    places: tuple[int, ...]
    n_micro_batches: int
    zero_grad: str  # "to_none", "to_zero" or "never"


@dataclass(frozen=True, slots=True)
class Episode:
    """Everything that ranks must do alike; what differs by rank they draw from seed and rank."""

    seed: int
    blocks: tuple[str, ...]
    settings: dict[str, Any]  # of GradSchedConfig
    steps: tuple[Step, ...]
    ending: str  # how a rank is lost at the end; "" where none is
    rank_at_end: int

    @property
    def faults(self) -> list[str]:
        return [step.fault for step in self.steps if step.fault] + [self.ending] * bool(self.ending)

    @property
    def has_mode(self) -> bool:
        return any(mode in self.settings for mode in MODES)

    def __str__(self) -> str:
        settings = ", ".join(f"{key}={value}" for key, value in self.settings.items())
        faults = " ".join(step.fault or "-" for step in self.steps)
        return f"seed {self.seed}: {' '.join(self.blocks)} | {settings} | {faults} | {self.ending}"


def make_episode(seed: int, *, with_modes: bool = False) -> Episode:
    """``with_modes``: with one of the engine's modes on, drawn from the seed too."""
    episode = _make_episode(seed)
    return with_mode(episode, drawn(seed)) if with_modes else episode


def _make_episode(seed: int) -> Episode:
    rng = random.Random(seed)
    blocks = tuple(rng.choices(BLOCKS, k=rng.randint(2, 8)))
    ending = rng.choice(ENDINGS) if rng.random() < 0.2 else ""
    settings = _settings(rng, ending)
    if settings["reduce_dtype"] == "float16" and "embedded" in blocks:
        settings["reduce_dtype"] = "bfloat16"  # torch adds no sparse tensors of float16
    n_steps = rng.randint(6, 16)
    if settings["planner"] in MEASURED_PLANNERS or settings["schedule"] == "auto":
        n_steps += N_STEPS_TO_MEASURE
    faults = [name for name in FAULTS if allowed(name, blocks)]
    habits = {"accumulate": rng.choice([1, 1, 2, 3]), "zero": rng.choice(ZEROS)}
    steps = [_step(rng, faults, len(blocks), **habits) for _ in range(n_steps)]
    return Episode(
        seed=seed,
        blocks=blocks,
        settings=settings,
        steps=tuple(_apart(step, before) for before, step in pairwise([None, *steps])),
        ending=ending,
        rank_at_end=rng.randrange(N_RANKS),
    )


def _apart(step: Step, before: Step | None) -> Step:
    """A rank that raised alone is waited for: it may not leave its engine before its next step."""
    left = before is not None and before.fault == "raises_on_one_rank"
    return replace(step, fault="") if left and step.fault == "made_anew" else step


ZEROS = ("to_none", "to_none", "to_zero", "never")


def _settings(rng: random.Random, ending: str) -> dict[str, Any]:
    planners = MEASURED_PLANNERS if rng.random() < 0.15 else PLANNERS
    return {
        "planner": rng.choice(planners),
        "group_nbytes": rng.choice([1, 600, 4000]),
        "schedule": rng.choice(["static", "negotiated", "auto"]),
        "reduce_dtype": rng.choice([None, None, None, "float32", "bfloat16", "float16"]),
        "broadcast_buffers": rng.random() < 0.7,
        "record_every_n_steps": rng.choice([0, 1, 3]),
        "stall_timeout_s": ENDING_STALL_TIMEOUT_S if ending else STALL_TIMEOUT_S,
    }


def _step(
    rng: random.Random, faults: list[str], n_blocks: int, *, accumulate: int, zero: str
) -> Step:
    return Step(
        fault=rng.choice(faults) if rng.random() < 0.5 else "",
        rank=rng.randrange(N_RANKS),
        places=tuple(rng.randrange(n_blocks) for _ in range(N_RANKS)),
        n_micro_batches=accumulate,
        zero_grad=zero,
    )

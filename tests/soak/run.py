"""One rank of an episode: each step with the engine, and again with the slow reference."""

from __future__ import annotations

import gc
import os
import pickle
import random
import signal
import time
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext, suppress
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lightning_gradsched import GradientScheduler, GradSchedConfig
from lightning_gradsched.config import REDUCE_DTYPES
from lightning_gradsched.errors import GradSchedError, ReductionError
from tests.modes import attach
from tests.soak import faults, modes
from tests.soak.episodes import Episode, Step
from tests.soak.modes import HeldBack
from tests.soak.nets import N_ROWS, WIDTH, RandomNet
from tests.soak.reference import Buffers, check_equal, check_gradients

ON_PURPOSE = (ZeroDivisionError, KeyboardInterrupt)
# More steps than any rank makes before it learns that another one is lost.
MOST_STEPS_AFTER_THE_END = 10_000


@dataclass
class Record:
    """What a rank did: steps, faults by kind, and how it learned of a lost rank."""

    n_steps: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    error: str = ""
    error_after_s: float = 0.0


class Rank:
    """A net with the engine and its twin without; equal at the beginning of every step."""

    def __init__(self, rank: int, episode: Episode, calibration_dir: str | None) -> None:
        torch.manual_seed(episode.seed)
        self.rank = rank
        self.rng = random.Random(f"{episode.seed} {rank}")
        self.data = torch.Generator().manual_seed(1000 * episode.seed + rank)
        self.net = RandomNet(episode.blocks)
        self.twin = deepcopy(self.net)
        self.config = GradSchedConfig(**episode.settings, calibration_dir=calibration_dir)
        name = self.config.reduce_dtype
        self.reduce_dtype = None if name is None else getattr(torch, REDUCE_DTYPES[name])
        self.buffers = Buffers(self.twin) if self.config.broadcast_buffers else None
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.02)
        self.settings = episode.settings
        self.held_back = HeldBack() if self.config.gradient_lag else None
        self.n_steps = 0
        self.scheduler = GradientScheduler(self.net, self.config)
        attach(self.scheduler, self.optimizer, self.settings)

    def step(self, step: Step) -> None:
        self.n_steps += 1
        self._make_equal()
        self._before(step)
        self._zero(step.zero_grad)
        if self.held_back is not None:
            self.held_back.begin(self.twin)
        if step.fault in faults.RAISES:
            self._raise(step)
            return
        factor = faults.NOT_FINITE.get(step.fault, 1.0) if step.rank == self.rank else 1.0
        backward = faults.BACKWARDS.get(step.fault, faults.plain)
        if step.fault in faults.LATE and step.rank == self.rank:
            place = step.places[self.rank]
            self.net.trouble = faults.LATE[step.fault], place, faults.sleep_a_little
        for micro_batch in range(step.n_micro_batches):
            is_last = micro_batch == step.n_micro_batches - 1
            self._backward(backward if is_last else faults.plain, factor, muted=not is_last)
        self.net.trouble = None
        n_reductions = faults.N_REDUCTIONS.get(step.fault, 1)
        is_looked_at = modes.is_looked_at(self.settings, self.n_steps)
        if is_looked_at or step.fault in faults.NOT_FINITE:
            self._check(n_reductions)
        if step.fault in faults.NOT_FINITE:
            self._zero("to_none")
            return
        self.optimizer.step()
        if modes.checks_weights(self.settings):
            self._check_weights(n_reductions, is_averaged=is_looked_at)

    def _check_weights(self, n_reductions: int, *, is_averaged: bool) -> None:
        modes.check_weights(
            self.net,
            self.twin,
            {name: param.detach() for name, param in self.twin.named_parameters()},
            self.optimizer.param_groups[0]["lr"],
            is_averaged=is_averaged,
            reduce_dtype=self.reduce_dtype,
            n_reductions=n_reductions,
        )

    def _make_equal(self) -> None:
        """What was checked is equal but for rounding, which shall not add up."""
        self.twin.load_state_dict(self.net.state_dict())
        for ours, other in zip(self.net.parameters(), self.twin.parameters(), strict=True):
            other.requires_grad_(ours.requires_grad)
            other.grad = None if ours.grad is None else ours.grad.detach().clone()

    def _zero(self, how: str) -> None:
        if how != "never":
            for net in (self.net, self.twin):
                net.zero_grad(set_to_none=how == "to_none")

    def _draw(self) -> Tensor:
        """The next batch; both nets take the same way through their blocks with it."""
        route = tuple(self.rng.randrange(1 << 16) for _ in self.net.blocks)
        self.net.route = self.twin.route = route
        return torch.randn(N_ROWS, WIDTH, generator=self.data)

    def _backward(
        self, backward: Callable[[nn.Module, Tensor, float], None], factor: float, *, muted: bool
    ) -> None:
        x = self._draw()
        with self.scheduler.no_sync() if muted else nullcontext():
            backward(self.net, x, factor)
        if self.buffers is not None:
            self.buffers.is_muted = muted
        backward(self.twin, x, factor)

    def _check(self, n_reductions: int) -> None:
        held = {} if self.held_back is None else {"after_average": self.held_back.hold}
        check_gradients(
            self.net, self.twin, reduce_dtype=self.reduce_dtype, n_reductions=n_reductions, **held
        )
        theirs = dict(self.twin.named_buffers())
        for name, buffer in self.net.named_buffers():
            check_equal(name, buffer, theirs[name], 0.0)

    def _raise(self, step: Step) -> None:
        """Cut off where the step says, catch it, and go on with the next step."""
        where, error = faults.RAISES[step.fault]
        alone = step.fault == "raises_on_one_rank"
        x = self._draw()
        place = step.places[self.rank]
        for net in [self.net] if alone else [self.net, self.twin]:
            if self.buffers is not None:
                self.buffers.is_muted = False
            if not alone or step.rank == self.rank:
                net.trouble = where, place, faults.raiser(error)
            # The others are told by an error where they negotiate, else by NaN.
            with suppress(*ON_PURPOSE, *([ReductionError] if alone else [])):
                faults.plain(net, x, 1.0)
            net.trouble = None
        if alone and self.buffers is not None:
            self.buffers.is_due = True
        self._zero("to_none")
        if step.fault == "raises_then_made_anew":
            self._make_anew()

    def _before(self, step: Step) -> None:
        if step.fault == "made_anew":
            self._make_anew()
        elif step.fault == "freezes_or_unfreezes":
            for net in (self.net, self.twin):
                for param in net.blocks[step.places[0]].parameters():
                    param.requires_grad_(not param.requires_grad)
        elif step.fault == "evaluates_alone" and step.rank == self.rank:
            x = self._draw()
            with torch.no_grad():
                self.net.eval()(x)
            self.net.train()
        elif step.fault == "drops_accumulated":
            self._backward(faults.plain, 1.0, muted=True)
            self._zero("to_none")
        elif step.fault == "copies_the_module":
            x = self._draw()
            for copied in (deepcopy(self.net), pickle.loads(pickle.dumps(self.net))):
                copied(x).sum().backward()
            gc.collect()
        elif step.fault == "reports":
            with suppress(GradSchedError):  # no step is measured yet, on any rank
                self.scheduler.report(across_ranks=True)

    def _make_anew(self) -> None:
        self.scheduler.detach()
        lagged = self.scheduler.lagged_state()
        self.scheduler = GradientScheduler(self.net, self.config)
        attach(self.scheduler, self.optimizer, self.settings)
        if lagged is not None:
            self.scheduler.restore_lagged(lagged)
        self.twin.load_state_dict(self.net.state_dict())
        if self.buffers is not None:
            self.buffers.is_due = True


def run_episode(rank: int, episode: Episode, calibration_dir: str | None) -> Record:
    """Called on each rank. Raises where anything is not as it should be."""
    warnings.simplefilter("ignore")  # torch's own, of complex casts and of hooks on freed graphs
    record = Record()
    here = Rank(rank, episode, calibration_dir)
    for number, step in enumerate(episode.steps):
        try:
            here.step(step)
        except BaseException as error:
            error.args = (f"in step {number}, {step}: {error}",)
            raise
        record.n_steps += 1
        record.faults[step.fault or "none"] += 1
    if episode.ending:
        _lose_a_rank(here, episode, record)
    # What was left to the next step may not have come from a rank that is lost.
    with suppress(*[ReductionError] * bool(episode.ending)):
        here.scheduler.detach()
    return record


def _lose_a_rank(here: Rank, episode: Episode, record: Record) -> None:
    pids: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(pids, os.getpid())
    began_s = time.monotonic()
    if here.rank == episode.rank_at_end:
        _end(here, episode.ending)
    try:
        for _ in range(MOST_STEPS_AFTER_THE_END):
            here.net.zero_grad()
            faults.plain(here.net, here._draw(), 1.0)
    except ReductionError as error:
        record.error = str(error)
    finally:
        # One that only is stopped would not end by itself.
        if episode.ending == "stopped" and here.rank == (episode.rank_at_end + 1) % len(pids):
            os.kill(pids[episode.rank_at_end], signal.SIGKILL)
    record.error_after_s = time.monotonic() - began_s
    record.faults[episode.ending] += 1
    assert record.error, f"went on for {MOST_STEPS_AFTER_THE_END} steps without a lost rank"


def _end(here: Rank, how: str) -> None:
    if how == "killed":
        faults.kill_itself()
    elif how == "stopped":
        faults.stop_itself()
    elif how == "raised":
        here.scheduler.detach()
        raise ZeroDivisionError("on purpose")
    here.net.trouble = "backward", here.rng.randrange(len(here.net.blocks)), faults.kill_itself

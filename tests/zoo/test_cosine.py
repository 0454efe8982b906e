"""The schedule, and that its horizon is not the checkpoint's."""

from __future__ import annotations

import doctest

import pytest
import torch

from zoo.data import photograph_list
from zoo.scheduler import cosine
from zoo.scheduler.cosine import CosineDecay


def _started(n_steps: int) -> tuple[torch.optim.Optimizer, CosineDecay]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    return optimizer, CosineDecay(optimizer, n_steps)


def _advance(optimizer: torch.optim.Optimizer, schedule: CosineDecay, n_steps: int) -> None:
    for _ in range(n_steps):
        optimizer.step()
        schedule.step()


def test_decays_to_zero_and_stays_there() -> None:
    optimizer, schedule = _started(n_steps=4)
    _advance(optimizer, schedule, 2)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1.0)
    _advance(optimizer, schedule, 4)
    assert optimizer.param_groups[0]["lr"] == 0.0


def test_a_longer_run_goes_on_from_a_shorter_one() -> None:
    shorter = _started(n_steps=4)
    _advance(*shorter, 4)
    optimizer, schedule = _started(n_steps=8)
    schedule.load_state_dict(shorter[1].state_dict())
    _advance(optimizer, schedule, 2)
    uninterrupted = _started(n_steps=8)
    _advance(*uninterrupted, 6)
    assert schedule.get_last_lr() == pytest.approx(uninterrupted[1].get_last_lr())


@pytest.mark.parametrize("module", [cosine, photograph_list])
def test_examples_in_docstrings(module) -> None:
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0

"""What breaks or is refused with ``gradient_lag=1``, and how ranks are told."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lightning_gradsched import GradientScheduler, GradSchedConfig
from lightning_gradsched.errors import GradSchedError, ReductionError
from tests.ranks import errors_of_ranks, run_ranks, tell, until_told
from tests.runtime.test_gradient_lag import backward, batch, engine, net


def unannounced(rank: int) -> None:
    """Past the module's own forward, on top of what the backward before has given out."""
    module = net()
    engine(module)
    inner = module.stem(batch(rank, 1)).sum()
    backward(module, rank, 0)
    inner.backward()


def test_a_backward_that_nobody_announced_on_top_of_what_is_out_is_an_error() -> None:
    for message in errors_of_ranks(2, unannounced):
        assert "parameter 'stem.weight' got a gradient on top of the one that the backward" in (
            message
        )
        assert "Call scheduler.prepare(loss) before it, or optimizer.zero_grad()" in message


def failing(rank: int) -> str:
    module = net()
    scheduler = engine(module, stall_timeout_s=10.0)
    backward(module, rank, 0)
    if rank == 1:  # it never sends what comes last
        scheduler._launches._sequence = scheduler._launches._sequence[:1]
        backward(module, rank, 1)
        until_told("rank 0 has given up")
        return "went away"
    backward(module, rank, 1)
    with pytest.raises(ReductionError) as error:
        backward(module, rank, 2)
    tell("rank 0 has given up")
    scheduler.detach()
    return str(error.value)


def test_a_stall_names_group_parameters_and_ranks() -> None:
    message = run_ranks(2, failing)[0]
    assert "rank 0 waited" in message
    assert "for group 1 (" in message
    assert "Rank 1 " in message


def refusals(rank: int) -> list[str]:
    messages = []
    with pytest.raises(GradSchedError) as error:
        engine(net()).register_comm_hook(None, refusals)
    messages.append(str(error.value))
    sparse = nn.Sequential(nn.Embedding(4, 2, sparse=True), nn.Linear(2, 1))
    engine(sparse)
    with pytest.raises(GradSchedError) as error:
        sparse(torch.tensor([rank])).sum().backward()
    messages.append(str(error.value))
    with pytest.raises(GradSchedError) as error:
        GradientScheduler(net()).restore_lagged({})
    messages.append(str(error.value))
    with pytest.raises(GradSchedError) as error:
        engine(net()).restore_lagged({"stem.weight": torch.zeros(3)})
    return [*messages, str(error.value)]


def test_what_cannot_lag_is_refused_by_name() -> None:
    hook, sparse, without, shape = run_ranks(2, refusals)[0]
    assert "expected gradient_lag=0 with a communication hook" in hook
    assert "expected dense gradients, got '0.weight' of a module with sparse=True" in sparse
    assert "expected gradient_lag=1, got 0" in without
    assert "gradient of 'stem.weight' to have shape (4, 4), got (3,)" in shape


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gradient_lag": 2}, "expected 0 or 1, got 2"),
        ({"gradient_lag": 1, "overlap_forward": True}, "expected overlap_forward=False"),
        ({"gradient_lag": 1, "schedule": "auto"}, "expected schedule='static'"),
    ],
)
def test_settings_that_do_not_go_together(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"gradient_lag: {message}"):
        GradSchedConfig(**settings)


def anomalous(rank: int) -> None:
    module = net()
    engine(module)
    backward(module, rank, 0)
    with torch.autograd.detect_anomaly(check_nan=True):
        module.left.weight.register_hook(lambda g: g * (torch.nan if rank == 1 else 1.0))
        backward(module, rank, 1)


def test_anomaly_detection_names_a_nan_in_the_backward_that_it_is_of() -> None:
    for message in errors_of_ranks(2, anomalous):
        assert "left.weight hold NaN" in message
        assert "rank 1 sent NaN or inf" in message


def heard(rank: int) -> list[bool]:
    module = net()
    scheduler = engine(module)
    seen = []
    for step in range(3):
        scheduler.notice.given = rank == 1 and step >= 1
        backward(module, rank, step)
        seen.append(scheduler.notice.heard)
    scheduler.detach()
    return seen


def test_what_a_rank_signals_is_heard_in_the_backward_that_it_is_of() -> None:
    assert run_ranks(2, heard) == [[False, True, True]] * 2


def unlike(rank: int) -> None:
    module = net()
    module.left.requires_grad_(False)
    engine(module)
    backward(module, rank, 0)
    module.left.requires_grad_(rank == 0)
    backward(module, rank, 1)


def test_what_one_rank_alone_unfreezes_is_an_error_on_all() -> None:
    for message in errors_of_ranks(2, unlike):
        assert "expected all ranks to unfreeze the same parameters" in message


def detached(rank: int) -> bool:
    module = net()
    scheduler = engine(module)
    backward(module, rank, 0)
    scheduler.detach()
    module.zero_grad()
    backward(module, rank, 1)
    alone = net()
    backward(alone, rank, 1)
    return torch.equal(module.stem.weight.grad, alone.stem.weight.grad)


def test_after_detach_a_backward_is_the_modules_own() -> None:
    assert run_ranks(2, detached) == [True, True]

"""LARC on values computed by hand, with closures, schedules, scaling and checkpoints."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from zoo.optim.larc import with_larc

SGD = partial(torch.optim.SGD, lr=0.1)
ADAM = partial(torch.optim.Adam, lr=0.1)


def _parameter(values: list[float], gradient: list[float]) -> nn.Parameter:
    parameter = nn.Parameter(torch.tensor(values))
    parameter.grad = torch.tensor(gradient)
    return parameter


def _step(optimizer: Any, values: list[float], gradient: list[float], **options: Any) -> Tensor:
    parameter = _parameter(values, gradient)
    with_larc([parameter], optimizer, eps=0.0, **options).step()
    return parameter.detach()


# ||w|| = 5, ||g|| = 1: the local rate is 0.05 at eta 0.01.
@pytest.mark.parametrize("placement", ["gradient", "update"])
@pytest.mark.parametrize(
    ("mode", "eta", "factor"),
    [
        ("clip", 0.01, 0.5),  # 0.05 / 0.1
        ("clip", 0.1, 1.0),  # 0.5 is over lr
        ("scale", 0.01, 0.05),
        ("scale", 1.0, 5.0),
    ],
)
def test_sgd(placement: str, mode: str, eta: float, factor: float) -> None:
    after = _step(SGD, [3.0, 4.0], [0.6, 0.8], placement=placement, mode=mode, eta=eta)
    expected = torch.tensor([3.0 - 0.1 * factor * 0.6, 4.0 - 0.1 * factor * 0.8])
    torch.testing.assert_close(after, expected)


def test_adam_cancels_a_factor_on_the_gradient() -> None:
    plain = _parameter([3.0, 4.0], [0.6, 0.8])
    ADAM([plain]).step()
    after = _step(ADAM, [3.0, 4.0], [0.6, 0.8], placement="gradient", eta=0.001)
    torch.testing.assert_close(after, plain.detach(), rtol=0.0, atol=1e-6)


def test_adam_update_is_no_longer_than_eta_of_the_weights() -> None:
    # Adam's first update is lr in each component, 0.1 sqrt(2) long; eta ||w|| is 0.05.
    after = _step(ADAM, [3.0, 4.0], [0.6, 0.8], placement="update", eta=0.01)
    moved = torch.tensor([3.0, 4.0]) - after
    torch.testing.assert_close(moved.norm(), torch.tensor(0.05), rtol=1e-5, atol=0.0)


def test_each_parameter_has_its_own_rate_and_groups_their_lr() -> None:
    first, second = _parameter([3.0, 4.0], [0.6, 0.8]), _parameter([0.3, 0.4], [0.6, 0.8])
    groups = [{"params": [first]}, {"params": [second], "lr": 0.2}]
    with_larc(groups, SGD, eta=0.01, eps=0.0).step()
    torch.testing.assert_close(first.detach(), torch.tensor([3.0, 4.0]) * (1 - 0.01))
    torch.testing.assert_close(second.detach(), torch.tensor([0.3, 0.4]) * (1 - 0.01))


@pytest.mark.parametrize("placement", ["gradient", "update"])
def test_zero_weights_and_zero_gradients_step_as_ever(placement: str) -> None:
    torch.testing.assert_close(
        _step(SGD, [0.0, 0.0], [1.0, 2.0], placement=placement), torch.tensor([-0.1, -0.2])
    )
    assert _step(SGD, [1.0, 2.0], [0.0, 0.0], placement=placement).tolist() == [1.0, 2.0]


def test_least_factor_bounds_both_sides() -> None:
    small = _step(SGD, [3.0, 4.0], [0.6, 0.8], mode="scale", eta=1e-6, least_factor=1e-2)
    torch.testing.assert_close(small, torch.tensor([3.0 - 1e-3 * 0.6, 4.0 - 1e-3 * 0.8]))
    large = _step(SGD, [3.0, 4.0], [0.6, 0.8], mode="scale", eta=10.0, least_factor=1e-2)
    torch.testing.assert_close(large, torch.tensor([3.0 - 0.06, 4.0 - 0.08]))


@pytest.mark.parametrize("placement", ["gradient", "update"])
def test_closure_is_scaled_after_it_has_run(placement: str) -> None:
    parameter = nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = with_larc([parameter], SGD, eta=0.01, eps=0.0, placement=placement)

    def closure() -> Tensor:
        parameter.grad = torch.tensor([0.6, 0.8])
        return torch.tensor(7.0)

    assert float(optimizer.step(closure)) == 7.0
    torch.testing.assert_close(parameter.detach(), torch.tensor([3.0, 4.0]) * (1 - 0.01))


def test_parameters_without_gradient_stay() -> None:
    frozen, moving = nn.Parameter(torch.ones(2)), _parameter([3.0, 4.0], [0.6, 0.8])
    with_larc([frozen, moving], SGD, eta=0.01).step()
    assert frozen.tolist() == [1.0, 1.0]
    assert moving.tolist() != [3.0, 4.0]


def _train(net: nn.Module, optimizer: torch.optim.Optimizer, n_steps: int) -> None:
    for step in range(n_steps):
        torch.manual_seed(step)
        optimizer.zero_grad()
        net(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("placement", ["gradient", "update"])
def test_state_goes_on_exactly(placement: str) -> None:
    torch.manual_seed(0)
    whole = nn.Linear(4, 2)
    halves = [nn.Linear(4, 2), nn.Linear(4, 2)]
    halves[0].load_state_dict(whole.state_dict())
    build = partial(with_larc, optimizer=ADAM, eta=0.01, placement=placement)
    _train(whole, build(whole.parameters()), 6)

    first = build(halves[0].parameters())
    _train(halves[0], first, 3)
    second = build(halves[1].parameters())
    halves[1].load_state_dict(halves[0].state_dict())
    second.load_state_dict(first.state_dict())
    # The optimizer's own state and nothing else.
    assert first.state_dict().keys() == ADAM(halves[0].parameters()).state_dict().keys()
    for step in range(3, 6):
        torch.manual_seed(step)
        second.zero_grad()
        halves[1](torch.randn(8, 4)).square().mean().backward()
        second.step()
    for ours, theirs in zip(halves[1].parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_schedule_reaches_the_limit() -> None:
    parameter = _parameter([3.0, 4.0], [0.6, 0.8])
    optimizer = with_larc([parameter], SGD, eta=0.01, eps=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.1 if step else 0.0)
    optimizer.step()
    assert parameter.tolist() == [3.0, 4.0]
    schedule.step()
    optimizer.step()
    # lr is 0.01 now, below the local rate of 0.05.
    torch.testing.assert_close(parameter.detach(), torch.tensor([3.0 - 0.006, 4.0 - 0.008]))


def test_gradients_that_are_still_scaled_are_refused() -> None:
    optimizer = with_larc([_parameter([1.0], [1.0])], SGD, placement="gradient")
    optimizer.grad_scale = SimpleNamespace()
    with pytest.raises(RuntimeError, match=r"expected unscaled gradients, but SGD .* fused=False"):
        optimizer.step()


@pytest.mark.parametrize(
    "options", [{"mode": "clamp"}, {"placement": "weight"}, {"eta": 0.0}, {"least_factor": 2.0}]
)
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"expected .* try "):
        with_larc([_parameter([1.0], [1.0])], SGD, **options)

"""The callback that stops before a NaN reaches the weights."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch

from zoo.callback.stop_on_non_finite import StopOnNonFinite
from zoo.errors import NonFiniteError


class _Layer(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)


def _trainer(global_step: int = 12, scaler: object = None) -> Any:
    plugin = SimpleNamespace(scaler=scaler)
    return SimpleNamespace(global_step=global_step, global_rank=1, precision_plugin=plugin)


def _check(trainer: Any, gradient: float, every_n_steps: int = 1) -> None:
    module, callback = _Layer(), StopOnNonFinite(every_n_steps)
    module.layer.weight.grad = torch.full((1, 2), 1.0)
    module.layer.bias.grad = torch.tensor([gradient])
    callback.on_before_backward(trainer, module, torch.tensor(0.25))
    callback.on_before_optimizer_step(trainer, module, torch.optim.SGD(module.parameters(), 0.1))


@pytest.mark.parametrize("gradient", [float("nan"), float("inf"), -float("inf")])
def test_names_step_loss_and_parameter(gradient: float) -> None:
    expected = r"step 12: .* first in layer\.bias.* loss on rank 1 is 0\.25\..*optimizer\.lr=1e-4"
    with pytest.raises(NonFiniteError, match=expected.replace("first", r"\(first")):
        _check(_trainer(), gradient)


def test_large_gradients_pass() -> None:
    # Their sum of squares overflows float32.
    _check(_trainer(), 1e38)
    with pytest.raises(NonFiniteError):
        _check(_trainer(), 1e38 * 1e38)


@pytest.mark.parametrize(("global_step", "stops"), [(10, True), (12, False)])
def test_looks_every_n_steps(global_step: int, stops: bool) -> None:
    outcome = pytest.raises(NonFiniteError) if stops else _nothing_raised()
    with outcome:
        _check(_trainer(global_step), float("nan"), every_n_steps=5)


def test_leaves_infinities_to_a_gradient_scaler() -> None:
    with _nothing_raised():
        _check(_trainer(scaler=object()), float("inf"))


class _nothing_raised:  # noqa: N801
    """Says in a test that passing without an error is the assertion."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, *error: object) -> bool:
        assert error == (None, None, None)
        return False

"""LARC-Adam and LAMB as configured, warm-up and milestones, and stopping at a target."""

from __future__ import annotations

import doctest

import lightning as L
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn

from zoo.callback.stop_at_target import StopAtTarget
from zoo.runtime import CONFIG_DIR, quiet_answered_warnings
from zoo.scheduler import cosine, multistep, warmup
from zoo.scheduler.multistep import MultiStepDecay

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]


def _weights() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [
        nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))
        for shape in ((4, 3), (5,))
    ]


def _gradients(n_steps: int) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        [torch.randn(w.shape, generator=generator, dtype=torch.float64) for w in _weights()]
        for _ in range(n_steps)
    ]


def _trained(name: str, gradients: list[list[Tensor]]) -> list[Tensor]:
    weights = _weights()
    optimizer = instantiate(OmegaConf.load(CONFIG_DIR / "optimizer" / f"{name}.yaml"))(weights)
    for step in gradients:
        for weight, gradient in zip(weights, step, strict=True):
            weight.grad = gradient.clone()
        optimizer.step()
    return [weight.detach() for weight in weights]


def test_lamb_is_algorithm_2() -> None:
    """You et al. 2020, written out: lr 1e-3, betas 0.9 and 0.999, eps 1e-6, decay 0.01."""
    gradients = _gradients(5)
    weights = [w.detach().clone() for w in _weights()]
    first, second = ([torch.zeros_like(w) for w in weights] for _ in range(2))
    for t, step in enumerate(gradients, start=1):
        for i, g in enumerate(step):
            first[i] = 0.9 * first[i] + 0.1 * g
            second[i] = 0.999 * second[i] + 0.001 * g**2
            r = first[i] / (1 - 0.9**t) / ((second[i] / (1 - 0.999**t)).sqrt() + 1e-6)
            direction = r + 0.01 * weights[i]
            ratio = weights[i].norm() / direction.norm()
            weights[i] = weights[i] - 1e-3 * ratio * direction
    for ours, expected in zip(_trained("lamb", gradients), weights, strict=True):
        torch.testing.assert_close(ours, expected)


def test_larc_adam_rescales_gradients_before_adam() -> None:
    """Kurth et al.'s code: min(0.002 |w| / |g|, lr) / lr a tensor, then Adam; lr 1e-4."""
    gradients = [[1e3 * g for g in step] for step in _gradients(4)]
    weights = _weights()
    adam = torch.optim.Adam(weights, lr=1e-4)
    for step in gradients:
        for w, g in zip(weights, step, strict=True):
            w.grad = min(0.002 * float(w.detach().norm() / g.norm()), 1e-4) / 1e-4 * g
        adam.step()
    for ours, expected in zip(_trained("larc_adam", gradients), weights, strict=True):
        torch.testing.assert_close(ours, expected.detach())


@pytest.mark.parametrize("module", [cosine, multistep, warmup])
def test_examples_in_docstrings(module) -> None:
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("name", ["larc", "larc_adam", "lamb"])
def test_an_experiment_sets_the_rate_of_any_optimizer(name: str) -> None:
    config = OmegaConf.load(CONFIG_DIR / "optimizer" / f"{name}.yaml")
    config.lr = 0.25
    assert instantiate(config)(_weights()).param_groups[0]["lr"] == 0.25


def test_milestones_count_from_the_end_of_the_warmup() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = MultiStepDecay(optimizer, milestones=[3], gamma=0.5, warmup_steps=2)
    rates = []
    for _ in range(7):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == [1.0, 2.0, 2.0, 2.0, 2.0, 1.0, 1.0]
    with pytest.raises(ValueError, match="rising milestones"):
        MultiStepDecay(optimizer, milestones=[3, 1])


class _Rising(L.LightningModule):
    """Its score is the number of epochs validated, over ten."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.n_validations = 0

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.layer(batch).sum()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.n_validations += 1
        self.log("val/iou", self.n_validations / 10)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def _fitted(callback: StopAtTarget, max_epochs: int = 9) -> L.Trainer:
    quiet_answered_warnings()
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=max_epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[callback],
    )
    loader = torch.utils.data.DataLoader(torch.ones(2, 1), batch_size=1)
    one = torch.utils.data.DataLoader(torch.ones(1, 1))
    trainer.fit(_Rising(), loader, one)
    return trainer


def test_target_stops_the_run_and_gives_its_time(capsys: pytest.CaptureFixture[str]) -> None:
    callback = StopAtTarget("val/iou", 0.3)
    trainer = _fitted(callback)
    assert trainer.global_step == 6
    assert (
        "target: val/iou 0.3000 reached 0.3 in epoch 2, step 6, after " in capsys.readouterr().out
    )
    # A resumed run counts what was before.
    later = StopAtTarget("val/iou", 0.1)
    later.load_state_dict({"elapsed_s": 1000.0})
    _fitted(later)
    assert later.seconds_to_target > 1000.0


def test_target_out_of_reach_or_unknown() -> None:
    callback = StopAtTarget("val/iou", 0.95)
    assert _fitted(callback, max_epochs=2).global_step == 4
    assert callback.seconds_to_target is None
    with pytest.raises(ValueError, match=r"expected 'val/nope' to be logged.*val/iou"):
        _fitted(StopAtTarget("val/nope", 0.95))

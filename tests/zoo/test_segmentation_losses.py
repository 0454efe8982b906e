"""Losses of masks: published weights, formulas by hand, and that each one learns."""

from __future__ import annotations

import doctest

import pytest
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from torch import Tensor, nn

from zoo.loss import class_weights
from zoo.loss.class_weights import class_weights_of
from zoo.loss.dice import Dice
from zoo.loss.focal import Focal
from zoo.loss.lovasz import Lovasz
from zoo.loss.tversky import Tversky
from zoo.loss.weighted_cross_entropy import WeightedCrossEntropy
from zoo.loss.weighted_sum import WeightedSum

_WEIGHTS = (0.1, 0.6, 0.3)
_LOSSES = {
    "cross_entropy": lambda: WeightedCrossEntropy(class_weights=_WEIGHTS),
    "focal": lambda: Focal(class_weights=_WEIGHTS),
    "tversky": Tversky,
    "dice": lambda: Dice(background=True),
    "lovasz": Lovasz,
    "lovasz_per_sample": lambda: Lovasz(per_sample=True),
    "sum": lambda: WeightedSum(
        {"a": WeightedCrossEntropy(class_weights=_WEIGHTS), "b": Lovasz()}, {"a": 1.0, "b": 0.5}
    ),
}


@pytest.fixture(params=sorted(_LOSSES))
def loss(request: pytest.FixtureRequest) -> nn.Module:
    return _LOSSES[request.param]()


def _problem(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 3, 6, 8, generator=generator)
    return logits, torch.randint(0, 3, (2, 6, 8), generator=generator)


def test_published_weights() -> None:
    assert doctest.testmod(class_weights).attempted == 2
    assert doctest.testmod(class_weights).failed == 0
    with pytest.raises(ValueError, match="positive frequency of every class"):
        class_weights_of((0.9, 0.0, 0.1), 0.5, True)


def test_weights_wait_for_the_data_unless_given() -> None:
    derived, given = WeightedCrossEntropy(), WeightedCrossEntropy(class_weights=_WEIGHTS)
    assert derived.waits_for_frequencies
    assert not given.waits_for_frequencies
    derived.take_class_frequencies((0.991**2, 0.0266**2, 0.13**2))
    assert derived.class_weights.tolist() == pytest.approx([0.0218, 0.8120, 0.1662], abs=5e-5)
    restored = WeightedCrossEntropy()
    restored.load_state_dict(derived.state_dict())
    assert torch.equal(restored.class_weights, derived.class_weights)
    assert not restored.waits_for_frequencies


@pytest.mark.parametrize("reduction", ["mean", "weighted_mean", "sum"])
def test_cross_entropy_by_torch(reduction: str) -> None:
    logits, labels = _problem()
    weights = torch.tensor(_WEIGHTS)
    if reduction == "mean":
        expected = F.cross_entropy(logits, labels, weights, reduction="none").mean()
    else:
        how = reduction.removeprefix("weighted_")
        expected = F.cross_entropy(logits, labels, weights, reduction=how)
    criterion = WeightedCrossEntropy(class_weights=_WEIGHTS, reduction=reduction, scale=0.1)
    torch.testing.assert_close(criterion(logits, labels), 0.1 * expected)


def test_low_precision_logits_are_compared_in_float32(loss: nn.Module) -> None:
    logits, labels = _problem()
    low = logits.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(low, labels)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(low.float(), labels))


def test_focal_by_hand() -> None:
    logits, labels = _problem()
    p = logits.softmax(dim=1).gather(1, labels[:, None])[:, 0]
    weights = torch.tensor(_WEIGHTS)[labels]
    expected = (weights * (1 - p) ** 2 * -p.log()).mean()
    torch.testing.assert_close(Focal(class_weights=_WEIGHTS)(logits, labels), expected)
    plain = WeightedCrossEntropy(class_weights=_WEIGHTS, reduction="mean")
    torch.testing.assert_close(
        Focal(gamma=0.0, class_weights=_WEIGHTS)(logits, labels), plain(logits, labels)
    )


def test_tversky_of_hard_masks_counts_pixels() -> None:
    labels = torch.tensor([[[0, 0, 1, 1], [1, 2, 2, 0]]])
    guess = torch.tensor([[[0, 1, 1, 1], [0, 2, 0, 0]]])
    logits = 100.0 * F.one_hot(guess, 3).movedim(-1, 1).float()
    # Class 1: two hits, one false, one missed. Class 2: one hit, one missed.
    expected = 1 - (2.5 / (2.5 + 0.3 + 0.7) + 1.5 / (1.5 + 0.7)) / 2
    assert float(Tversky(smooth_px=0.5)(logits, labels)) == pytest.approx(expected)
    dice = 1 - (2 * 2.5 / (2 * 2.5 + 2) + 2 * 1.5 / (2 * 1.5 + 1)) / 2
    assert float(Dice(smooth_px=0.5)(logits, labels)) == pytest.approx(dice)


@pytest.mark.parametrize("weighted", [False, True])
def test_lovasz_of_hard_masks_is_one_minus_iou(weighted: bool) -> None:
    """The extension agrees with the set function on corners (Berman et al., section 3.1)."""
    generator = torch.Generator().manual_seed(3)
    labels, guess = torch.randint(0, 3, (2, 1, 6, 8), generator=generator)
    logits = 100.0 * F.one_hot(guess, 3).movedim(-1, 1).float()
    weights = torch.rand(6, 1, generator=generator) if weighted else torch.ones(6, 1)
    weights[0] = 0.0 if weighted else 1.0
    losses = []
    for c in range(3):
        both = (weights * ((labels == c) & (guess == c))).sum()
        either = (weights * ((labels == c) | (guess == c))).sum()
        losses.append(1 - both / either)
    expected = torch.stack(losses).mean()
    pixel_weights = weights if weighted else None
    torch.testing.assert_close(Lovasz()(logits, labels, pixel_weights), expected)


def test_lovasz_leaves_out_classes_that_the_labels_lack() -> None:
    logits, labels = _problem()
    labels[labels == 1] = 0
    labels[0] = 0
    samples = [Lovasz()(logits[i : i + 1], labels[i : i + 1]) for i in range(2)]
    torch.testing.assert_close(Lovasz(per_sample=True)(logits, labels), torch.stack(samples).mean())


def test_pixel_weights_of_one_change_nothing_and_zero_hides_a_row(loss: nn.Module) -> None:
    logits, labels = _problem()
    torch.testing.assert_close(loss(logits, labels, torch.ones(6, 1)), loss(logits, labels))
    weights = torch.ones(6, 1)
    weights[2] = 0.0
    logits.requires_grad_()
    loss(logits, labels, weights).backward()
    assert float(logits.grad[:, :, 2].abs().max()) == 0.0
    assert float(logits.grad[:, :, 3].abs().max()) > 0.0


def test_each_loss_learns_a_rare_class(loss: nn.Module) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4, 16, 16)
    labels = (x[:, 0] > 1.7).long() + 2 * (x[:, 1] > 1.5).long().clamp(max=1)
    labels = labels.clamp(max=2)
    net = nn.Sequential(nn.Conv2d(4, 16, 1), nn.ReLU(), nn.Conv2d(16, 3, 1))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.03)
    first = None
    for _ in range(150):
        optimizer.zero_grad()
        value = loss(net(x), labels)
        first = value.item() if first is None else first
        value.backward()
        optimizer.step()
    prediction = net(x).argmax(dim=1)
    assert value.item() < 0.5 * first
    for c in (1, 2):
        hit = ((prediction == c) & (labels == c)).sum() / (labels == c).sum()
        assert hit > 0.7


def test_bad_options_are_named() -> None:
    for build, message in (
        (lambda: WeightedCrossEntropy(class_weights=(1.0,)), "expected 3 class_weights"),
        (lambda: WeightedCrossEntropy(reduction="median"), "reduction must be one of"),
        (lambda: Focal(gamma=-1.0), "gamma >= 0"),
        (lambda: Tversky(0.0, 0.0), "not both 0"),
        (lambda: WeightedSum({"a": Lovasz()}, {"b": 1.0}), "name the same in both"),
    ):
        with pytest.raises(ValueError, match=message):
            build()


def test_sum_from_a_configuration() -> None:
    terms = {name: {"_target_": "zoo.loss.lovasz.Lovasz"} for name in ("a", "b")}
    config = {
        "_target_": "zoo.loss.weighted_sum.WeightedSum",
        "terms": terms,
        "weights": {"a": 1.0, "b": 2.0},
    }
    logits, labels = _problem()
    torch.testing.assert_close(instantiate(config)(logits, labels), 3 * Lovasz()(logits, labels))

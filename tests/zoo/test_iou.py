"""Three definitions of IoU, against torchmetrics and on two ranks with uneven counts."""

from __future__ import annotations

import doctest

import pytest
import torch
from torch import Tensor
from torchmetrics.classification import MulticlassJaccardIndex
from torchmetrics.segmentation import MeanIoU

from tests.ranks import run_ranks
from tests.zoo.jobs import iou_table_of_rank
from zoo.metric import iou
from zoo.metric.iou import class_iou, confusion_matrices, macro_jaccard, mean_iou, mlperf_iou

_NAMES = ("background", "tropical_cyclone", "atmospheric_river")


def _masks(n: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Predictions and labels [n, 16, 24]; the first samples lack cyclones."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (n, 16, 24), generator=generator)
    labels[: n // 2][labels[: n // 2] == 1] = 0
    flipped = torch.rand(labels.shape, generator=generator) < 0.2
    return torch.where(flipped, labels.roll(1, dims=-1), labels), labels


def test_one_false_pixel_scores_by_definition() -> None:
    """Perfect but for a pixel of a class that is in neither truth: 0.83, 0.80 and 0.66."""
    assert doctest.testmod(iou).attempted > 0
    assert doctest.testmod(iou).failed == 0
    labels = torch.zeros(2, 8, 8, dtype=torch.int64)
    labels[:, 0, :3] = 2
    perfect = confusion_matrices(labels, labels, 3)
    assert [float(f(perfect)) for f in (mlperf_iou, mean_iou, macro_jaccard)] == [1.0, 1.0, 1.0]
    assert class_iou(perfect.sum(dim=0)).isnan().tolist() == [False, True, False]


def test_no_cyclone_predicted_is_right_on_samples_without() -> None:
    labels = torch.zeros(4, 8, 8, dtype=torch.int64)
    labels[0, 0, 0] = 1
    nothing = confusion_matrices(torch.zeros_like(labels), labels, 3)
    assert float(class_iou(nothing.sum(dim=0))[1]) == 0.0
    # (1 + 0 + 1) / 3 on the first sample, 1 on the others.
    assert float(mlperf_iou(nothing)) == pytest.approx(1.0 - (1 + 1 / 64) / 12)


def test_definitions_are_those_of_torchmetrics() -> None:
    prediction, labels = _masks()
    matrices = confusion_matrices(prediction, labels, 3)
    mean, jaccard = MeanIoU(3, input_format="index"), MulticlassJaccardIndex(3)
    assert float(mean_iou(matrices)) == pytest.approx(float(mean(prediction, labels)), abs=1e-6)
    macro = float(jaccard(prediction, labels))
    assert float(macro_jaccard(matrices)) == pytest.approx(macro, abs=1e-6)
    assert float(mlperf_iou(matrices)) == pytest.approx(_compute_score(prediction, labels))


def _compute_score(prediction: Tensor, labels: Tensor) -> float:
    """As MLPerf's reference says it, pixel by pixel."""
    total = 0.0
    for p, t in zip(prediction.flatten(1).tolist(), labels.flatten(1).tolist(), strict=True):
        for c in range(3):
            both = sum(a == c == b for a, b in zip(p, t, strict=True))
            either = sum(c in (a, b) for a, b in zip(p, t, strict=True))
            total += (both / either if either else 1.0) / 3 / len(prediction)
    return total


def test_two_ranks_with_uneven_counts_give_what_one_gives() -> None:
    prediction, labels = _masks()
    expected = iou.summarize(confusion_matrices(prediction, labels, 3), _NAMES)
    # Rank 0 has four of five samples in uneven batches, rank 1 one, and again sample 2.
    shares = [[[0, 1, 2], [3]], [[4], [2]]]
    for scores in run_ranks(2, iou_table_of_rank, prediction, labels, shares):
        for name, value in expected.items():
            assert scores[name] == float(value)

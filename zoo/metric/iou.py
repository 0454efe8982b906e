"""Intersection over union of masks, in the three definitions that are in use.

All come from one confusion matrix a sample. They differ in what is averaged when, and in what a
class counts that is neither in the truth nor in the prediction; on the same masks they may lie 17
points apart:

- `mlperf_iou`: mean over classes of a sample, an absent class counting 1; mean over samples.
  MLPerf HPC's DeepCAM (`compute_score`); its target is 0.82.
- `mean_iou`: mean over all pairs of sample and class where the class is not absent. torchmetrics'
  `segmentation.MeanIoU(input_format="index")`.
- `macro_jaccard`: IoU of each class over all pixels of all samples together; mean over the classes
  that are not absent. torchmetrics' `MulticlassJaccardIndex(average="macro")`.

>>> truth = torch.zeros(2, 8, 8, dtype=torch.int64)
>>> truth[:, 0, :3] = 2
>>> prediction = truth.clone()
>>> prediction[0, 7, 7] = 1
>>> matrices = confusion_matrices(prediction, truth, 3)
>>> [round(float(f(matrices)), 4) for f in (mlperf_iou, mean_iou, macro_jaccard)]
[0.8306, 0.7967, 0.6639]
"""

from __future__ import annotations

import torch
from torch import Tensor

DEFINITIONS = {
    "iou_mlperf": "mean over classes a sample, absent classes count 1; mean over samples",
    "iou_mean": "mean over pairs of sample and class, absent classes left out",
    "iou_macro": "IoU of each class over all pixels of all samples; mean over classes",
}


def confusion_matrices(prediction: Tensor, labels: Tensor, n_classes: int) -> Tensor:
    """[N, H, W] integers twice -> [N, C, C] int64: pixels by (label, prediction)."""
    n_samples, n_cells = len(labels), n_classes**2
    cells = (labels * n_classes + prediction).view(n_samples, -1)
    cells = cells + n_cells * torch.arange(n_samples, device=cells.device)[:, None]
    counts = torch.bincount(cells.flatten(), minlength=n_samples * n_cells)
    return counts.view(n_samples, n_classes, n_classes)


def class_iou(matrices: Tensor) -> Tensor:
    """[..., C, C] -> [..., C] float64; NaN where a class is in neither mask."""
    intersection = matrices.diagonal(dim1=-2, dim2=-1).double()
    union = matrices.sum(dim=-1) + matrices.sum(dim=-2) - intersection
    return intersection / union


def mlperf_iou(matrices: Tensor) -> Tensor:
    """[N, C, C] -> scalar. Optimistic for rare classes: no prediction is right on most samples."""
    return class_iou(matrices).nan_to_num(nan=1.0).mean()


def mean_iou(matrices: Tensor) -> Tensor:
    """[N, C, C] -> scalar."""
    return class_iou(matrices).nanmean()


def macro_jaccard(matrices: Tensor) -> Tensor:
    """[N, C, C] -> scalar."""
    return class_iou(matrices.sum(dim=0)).nanmean()


def summarize(matrices: Tensor, class_names: tuple[str, ...]) -> dict[str, Tensor]:
    """The three means by the names in `DEFINITIONS`, and `iou_CLASS` over all pixels."""
    classes = class_iou(matrices.sum(dim=0))
    means = (mlperf_iou(matrices), mean_iou(matrices), macro_jaccard(matrices))
    return dict(zip(DEFINITIONS, means, strict=True)) | {
        f"iou_{name}": iou for name, iou in zip(class_names, classes, strict=True)
    }

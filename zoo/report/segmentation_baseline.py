"""What a threshold on water vapour makes of the masks: the least that a network must beat."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from zoo.data.climate_labels import damping_of

_N_THRESHOLDS = 2000


def damped(tmq: np.ndarray, latitude_deg: np.ndarray) -> np.ndarray:
    """[..., H, W] with the tropics' own humidity taken out, as the rule of the labels begins."""
    return tmq * damping_of(latitude_deg)[:, None].astype(tmq.dtype)


def best_threshold_iou(
    values: np.ndarray, labels: np.ndarray, class_names: Sequence[str]
) -> list[float]:
    """IoU of each class with `values` above the threshold that is best for these labels.

    Of class 0, the background, with values below it. Thresholds are tried at 2,000 equal steps.
    Each class is scored alone, so this is more than any one mask could reach. NaN where a class
    is absent.

    >>> values, labels = np.array([1.0, 2.0, 3.0, 4.0]), np.array([0, 0, 1, 0])
    >>> best_threshold_iou(values, labels, ("background", "event"))
    [0.75, 0.5]
    """
    edges = np.linspace(values.min(), values.max(), _N_THRESHOLDS + 1)
    every = np.histogram(values, edges)[0]
    scores = []
    for of_class in range(len(class_names)):
        inside = np.histogram(values[labels == of_class], edges)[0]
        if not inside.sum():
            scores.append(float("nan"))
            continue
        chosen, hit = _beyond(every, of_class), _beyond(inside, of_class)
        scores.append(float((hit / (chosen + inside.sum() - hit)).max()))
    return scores


def _beyond(counts: np.ndarray, of_class: int) -> np.ndarray:
    """Of bins of rising values: how many lie up to each (class 0), or from each on."""
    return counts.cumsum() if of_class == 0 else counts[::-1].cumsum()[::-1]

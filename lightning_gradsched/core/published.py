"""Training steps and scaling efficiencies that were published, and what had to be assumed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lightning_gradsched.core.profile import BackwardProfile, ParamProfile
from lightning_gradsched.errors import ProfileError

# Weights of an FC-DenseNet in forward order, from the counter in its authors' log (Laanait et al.
# 2019, stemdl ``logs.o307634``); transition layers are part of the entry after them.
FC_DENSENET_WEIGHTS = {
    "CONV_INIT": (1180160,),
    "DB_0": (147456, 294912),
    "DB_1": (590592, 589824),
    "DB_2": (1148160, 884736, 1032192),
    "DB_3": (2230272, 1327104, 1474560, 1622016),
    "DB_4": (2031616, 1916928, 2064384),
    "DB_5": (1327104, 1327104),
    "DB_6": (802816, 884736),
    "CONV_FIN": (896,),
}

# Step times in seconds by ranks: Kurth et al. 2018, climate-seg-benchmark
# ``notebooks/ScalingAnalysis.ipynb``, DeepLab on Cori KNL, dummy data, batch 1 a rank.
CORI_KNL_STEP_S = {
    1: 14.542,
    2: 14.305,
    4: 14.318,
    8: 14.702,
    16: 14.805,
    32: 14.736,
    64: 14.901,
    128: 15.022,
    256: 15.128,
    512: 15.470,
    1024: 15.687,
}


class Point(NamedTuple):
    """A published scaling efficiency, 0 to 1, against one rank."""

    n_ranks: int
    efficiency: float
    source: str


@dataclass(frozen=True, slots=True)
class Published:
    """A training step, where its numbers come from, and the points published of it.

    ``network``: on which of ours they were; None: of machines of which we have no numbers.
    """

    profile: BackwardProfile
    notes: tuple[str, ...]
    network: str | None
    points: tuple[Point, ...]


def spread(
    named: Sequence[tuple[str, int]], *, bytes_per_weight: int, step_s: float
) -> BackwardProfile:
    """A profile of ``(name, weights)`` in ready order; a gradient takes time as it has weights.

    Backward is two thirds of the step: two products of matrices a layer where forward has one, and
    goes through the layers in reverse.

    >>> [p.ready_s for p in spread([("b", 3), ("a", 1)], bytes_per_weight=2, step_s=6.0).params]
    [3.0, 4.0]
    """
    total, done = sum(weights for _, weights in named), 0
    backward_s = step_s * 2 / 3
    forward_s = step_s - backward_s
    params = []
    for name, weights in named:
        done += weights
        params.append(
            ParamProfile(
                name,
                weights * bytes_per_weight,
                ready_s=backward_s * done / total,
                needed_s=forward_s * (total - done) / total,
            )
        )
    return BackwardProfile(tuple(params), forward_s=forward_s, backward_s=backward_s)


def fc_densenet() -> Published:
    """Laanait et al.'s FC-DenseNet, of the logs on 12 and 192 V100 of Summit."""
    layers = [
        (f"{scope}/{number}", weights)
        for scope, block in FC_DENSENET_WEIGHTS.items()
        for number, weights in enumerate(block)
    ]
    return Published(
        spread(layers[::-1], bytes_per_weight=2, step_s=12 / 36.0),
        notes=(
            "gradients: the authors' log's layer table, 22,877,568 weights, fp16",
            "compute: 1/3 s a step, 36.0 samples/s on 12 V100 at batch 1 (the same log); the jitter"
            " and communication of those 12 ranks are in it",
            _SPREAD,
            "the net and settings of the 27,600-rank run are not known: this table is taken"
            " (assumption)",
        ),
        network="summit",
        points=(Point(27600, 0.93, "Laanait et al. 2019"),),
    )


def deeplab_cori() -> Published:
    """Kurth et al.'s DeepLab on Cori KNL: the one complete curve that is published."""
    one_s = CORI_KNL_STEP_S[1]
    return Published(
        spread(_DEEPLAB, bytes_per_weight=4, step_s=one_s),
        notes=(
            "compute: 14.542 s, the published step on 1 rank, dummy data",
            _DEEPLAB_NOTE,
            _SPREAD,
        ),
        network="cori-knl",
        points=tuple(
            Point(n_ranks, one_s / step_s, "Kurth et al. 2018, notebook")
            for n_ranks, step_s in CORI_KNL_STEP_S.items()
        ),
    )


def deeplab_summit() -> Published:
    """Kurth et al.'s DeepLab, FP32, on Summit."""
    return Published(
        spread(_DEEPLAB, bytes_per_weight=4, step_s=1 / 0.87),
        notes=(
            "compute: 1.15 s a step, 0.87 samples/s on one V100 at batch 1, FP32 (UNVERIFIED)",
            _DEEPLAB_NOTE,
            _SPREAD,
        ),
        network="summit",
        points=(Point(27360, 0.907, "Kurth et al. 2018"),),
    )


def deepcam() -> Published:
    """MLPerf HPC's DeepCAM, of the logs of DGX-A100s (round v1.0) that are in its results."""
    return Published(
        spread(_DEEPCAM, bytes_per_weight=4, step_s=DEEPCAM_SAMPLE_S),
        notes=(
            "gradients: 56,454,720 weights (mlcommons/hpc, deepcam), here in 96 equal tensors"
            " (assumption), fp32: the submissions' one bucket of 225.8 MB",
            f"compute: {DEEPCAM_SAMPLE_S * 1e3:.1f} ms a sample, DERIVED from two logs of A100s:"
            " 27.7 samples/s a rank at batch 2 (512 ranks) and 21.0 at batch 1 (2,048), if what a"
            " step has besides its samples took the same time in both, and a second sample as long"
            " as the first (assumption)",
            "published: that time of a sample, against the step at batch 1 on 2,048 ranks, all of"
            " whose communication comes after backward; other links than any network here",
            _SPREAD,
        ),
        network=None,
        points=(
            Point(
                2048, DEEPCAM_SAMPLE_S * 21.0, "derived from MLPerf HPC v1.0, DGX-A100, no overlap"
            ),
        ),
    )


_SPREAD = (
    "backward is 2/3 of compute; a layer's share of it is its share of the weights, which makes"
    " layers of large images too cheap (assumption)"
)
_DEEPLAB_NOTE = "gradients: 40 million weights in 100 equal tensors, fp32 (assumption)"
_DEEPCAM = [(f"layer{number}", 588_070) for number in reversed(range(96))]
# t of a sample and c of all else: 2 t + c = 2 / 27.7 s, t + c = 1 / 21.0 s.
DEEPCAM_SAMPLE_S = 2 / 27.7 - 1 / 21.0
_DEEPLAB = [(f"layer{number}", 400_000) for number in reversed(range(100))]

PUBLISHED: dict[str, Callable[[], Published]] = {
    "fc-densenet": fc_densenet,
    "deeplab-cori": deeplab_cori,
    "deeplab-summit": deeplab_summit,
    "deepcam": deepcam,
}


def published_named(name: str) -> Published:
    """Raises ``ProfileError`` with the names that there are."""
    if name not in PUBLISHED:
        raise ProfileError(
            f"expected the path of a backward profile in JSON, or one of {sorted(PUBLISHED)};"
            f" got {name!r}"
        )
    return PUBLISHED[name]()

"""S2, super-resolution: regularised nets from few patches of real photographs."""

from __future__ import annotations

from functools import cache, partial

from matplotlib.figure import Figure
from torch import nn

from zoo.claim import regularization
from zoo.claim.claim import Advance, Check, Claim, Measured, Rows, at_least
from zoo.claim.photographs import photograph_patches
from zoo.claim.regularization import Problem, mean_psnr, measure_all, terms
from zoo.data.patches import PatchesDataModule
from zoo.metric.sample_errors import clamped_psnr
from zoo.net.espcn import ESPCN
from zoo.net.mlp import MLP
from zoo.physics.bicubic import BicubicDownsampling, upsample
from zoo.physics.dense import Dense

_SIDE_PX, _SCALE, _N_TRAIN, _NOISE = 12, 2, 30, 0.01
_COLUMNS = {"fully connected": {"net": "dense"}, "convolutional": {"net": "convolutional"}}
# Of Adam. A convolution has few weights, which take long to be found.
_STEPS = {"dense": 300, "convolutional": 1000}
_PRODUCTS = (3e-3, 1e-2, 3e-2, 0.1, 0.3)
_GRIDS = {
    "dense": {"weight decay": (1e-3, 3e-3, 1e-2, 3e-2, 0.1)},
    "convolutional": {
        "weight decay": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
        "spectral product": _PRODUCTS,
        "model-aware product": _PRODUCTS,
    },
}
_SMALL = ("none", "weight decay", "spectral product", "model-aware product")


def measure(small: bool, advance: Advance) -> Measured:
    """Every term for both nets."""
    names, seeds = (_SMALL if small else tuple(terms())), list(range(3))
    problems = [
        (labels, _problem(net := labels["net"], _STEPS[net])) for labels in _COLUMNS.values()
    ]
    measured = measure_all(problems, names, seeds, advance)
    problem = problems[1][1]
    measured["cost_convolutional"] = regularization.costs(problem, names)
    return measured | {"bicubic": _bicubic(problem)}


def _problem(net: str, n_steps: int) -> Problem:
    flat = net == "dense"
    operator = Dense(BicubicDownsampling((1, _SIDE_PX, _SIDE_PX), _SCALE), flat)
    n_low, n_high = (_SIDE_PX // _SCALE) ** 2, _SIDE_PX**2
    fresh = partial(MLP, n_low, n_high, (128, 128)) if flat else partial(ESPCN, (16, 16), _SCALE)
    return Problem(operator, fresh, cache(partial(_data, operator)), n_steps, _GRIDS[net])


def _data(operator: nn.Module, seed: int) -> PatchesDataModule:
    options = {"n_train": _N_TRAIN, "batch_size": None, "noise": _NOISE, "seed": seed}
    return photograph_patches(operator, **options)


def _bicubic(problem: Problem) -> float:
    test = problem.data(0).samples("test")
    return clamped_psnr(upsample(test.data, _SCALE), test.truth)


def checks(measured: Measured) -> list[Check]:
    found = []
    for heading, labels in _COLUMNS.items():
        mean = {name: mean_psnr(measured, labels, name) for name in _SMALL}
        gain = mean["model-aware product"] - mean["weight decay"]
        found.append(at_least(f"{heading}: model-aware product - weight decay (dB)", gain, 0.0))
    return found


def table(measured: Measured) -> Rows:
    rows = regularization.table(measured, _COLUMNS)
    header = [*rows.header[:-1], "time of a step, fully connected", "convolutional"]
    costs = measured["cost_convolutional"]
    body = [[*row, f"{costs[row[0]]:.1f} x"] for row in rows.rows]
    bicubic = f"{measured['bicubic']:.2f}"
    return Rows(header, [*body, ["bicubic, no net", bicubic, bicubic, "", ""]])


def plot(measured: Measured) -> Figure:
    return regularization.plot(measured, _COLUMNS)


CLAIM = Claim(
    name="photograph_patches",
    title="Super-resolution from 30 patches: fully connected and convolutional, every regulariser",
    source="Amjad, Lyu and Rodrigues, arXiv 1901.11352; IEEE TSP 69, 2021",
    published="Regularisation by the bound beats weight decay in super-resolution, for fully "
    "connected and convolutional nets (abstract). The tables of the papers were not at hand.",
    experiments=("python -m zoo.train experiment=photograph_patches",),
    measure=measure,
    checks=checks,
    table=table,
    plot=plot,
    remarks="Gray patches of 12 x 12 pixels from 6 x 6 noisy ones (antialiased bicubic, noise of "
    "0.01); scikit-image's photographs, others in each split. A dense net 36-128-128-144 and ESPCN "
    "with 16 and 16 channels, 300 and 1,000 steps of Adam on the whole training set; each term at "
    "the weight with the best mean PSNR on 200 validation patches, 300 test patches. For the "
    "convolutional net the two terms are apart by less than the seeds are: in validation the "
    "product is ahead by 0.2 dB, in the test behind by 0.1. Bicubic interpolation is ahead of all "
    "of these: the nets learn the whole image from few patches. Nets that learn what bicubic "
    "leaves were tried with weight decay and the model-aware product: both are then best, in "
    "validation, where they shrink the convolutional net to nothing (31.98 dB, bicubic's own), and "
    "do not differ.",
)

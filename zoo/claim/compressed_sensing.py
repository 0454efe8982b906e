"""S2: regularisation by the Jacobian, the forward operator inside, on few training images."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

from matplotlib.figure import Figure

from zoo.claim import regularization
from zoo.claim.claim import Advance, Check, Claim, Measured, Rows, at_least
from zoo.claim.regularization import Problem, mean_psnr, measure_all, terms
from zoo.data.digits import DigitsDataModule
from zoo.net.mlp import MLP
from zoo.physics.compressed_sensing import CompressedSensing

_SIZES = (20, 50)
_SMALL = ("none", "weight decay", "model-aware product")


def measure(small: bool, advance: Advance) -> Measured:
    """Every term for 20 and 50 training images."""
    names = _SMALL if small else tuple(terms())
    problems = [({"n_train": n_train}, _problem(n_train)) for n_train in _SIZES]
    return measure_all(problems, names, list(range(5)), advance)


def _problem(n_train: int) -> Problem:
    operator = CompressedSensing()
    return Problem(
        operator,
        partial(MLP, 24, 64, (256, 256)),
        cache(lambda seed: DigitsDataModule(operator, n_train=n_train, seed=seed)),
        n_steps=600,
    )


def _columns(measured: Measured) -> dict[str, dict[str, Any]]:
    sizes = sorted({result["n_train"] for result in measured["results"]})
    return {f"{n_train} images": {"n_train": n_train} for n_train in sizes}


def checks(measured: Measured) -> list[Check]:
    found = []
    for heading, labels in _columns(measured).items():
        mean = {name: mean_psnr(measured, labels, name) for name in _SMALL}
        aware = mean["model-aware product"]
        what = f"{heading}: model-aware product - "
        found += [
            at_least(f"{what}weight decay (dB)", aware - mean["weight decay"], 0.2),
            at_least(f"{what}none (dB)", aware - mean["none"], 0.4),
        ]
    return found


def table(measured: Measured) -> Rows:
    return regularization.table(measured, _columns(measured))


def plot(measured: Measured) -> Figure:
    return regularization.plot(measured, _columns(measured))


CLAIM = Claim(
    name="compressed_sensing",
    title="Jacobian regularisation with the forward operator inside, on 20 and 50 images",
    source="Amjad, Lyu and Rodrigues, arXiv 1901.11352; IEEE TSP 69, 2021",
    published="Regularisation by the bound beats weight decay, also in compressed sensing "
    "(abstracts). The tables of the papers were not at hand.",
    experiments=("python -m zoo.train experiment=compressed_sensing",),
    measure=measure,
    checks=checks,
    table=table,
    plot=plot,
    remarks="PSNR on 597 test digits of 8 x 8 from 24 noisy random projections, a dense network "
    "24-256-256-64, 600 steps of Adam on the whole training set. A seed draws the training "
    "images, their noise and the first weights; each term has the weight with the best mean PSNR "
    "on 200 validation images. Time of a step: forward and backward of one network, against none.",
)

"""S2: regularisation by the Jacobian, the forward operator inside, on few training images."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from time import perf_counter

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from zoo.claim.claim import Advance, Check, Claim, Measured, Rows, at_least, mean_and_spread
from zoo.data.digits import DigitsDataModule
from zoo.data.samples import Samples
from zoo.ensemble import Ensemble, Objective
from zoo.loss.jacobian import Jacobian
from zoo.loss.orthogonality import Orthogonality
from zoo.loss.spectral_product import SpectralProduct
from zoo.loss.weight_decay import WeightDecay
from zoo.metric.sample_errors import psnr
from zoo.net.mlp import MLP
from zoo.physics.compressed_sensing import CompressedSensing
from zoo.physics.operator import Operator

_HIDDEN = (256, 256)
_STEPS = 600
_TIMED_STEPS = 15
# Rounded half decades.
_TENTHS = (1e-2, 3e-2, 0.1, 0.3, 1.0)
_THOUSANDTHS = (1e-5, 1e-4, 1e-3, 1e-2, 0.1)
_DECAYS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
_DEFECTS = (1e-5, 1e-4, 1e-3, 1e-2)

Term = Callable[[float, Operator], nn.Module | None]


def _terms() -> dict[str, tuple[Term, tuple[float, ...]]]:
    """Name -> (weight, operator) -> term, and the weights tried."""
    jacobian = {
        f"{name}Jacobian {kind}": (partial(_jacobian, kind, aware), _THOUSANDTHS)
        for kind in ("Frobenius", "spectral")
        for name, aware in (("", False), ("model-aware ", True))
    }
    return {
        "none": (lambda weight, operator: None, (0.0,)),
        "weight decay": (lambda weight, operator: WeightDecay(weight), _DECAYS),
        **jacobian,
        "orthogonality": (lambda weight, operator: Orthogonality(weight), _DEFECTS),
        "spectral product": (lambda weight, operator: SpectralProduct(weight), _TENTHS),
        "model-aware product": (SpectralProduct, _TENTHS),
    }


def _jacobian(kind: str, aware: bool, weight: float, operator: Operator) -> Jacobian:
    return Jacobian(weight, kind.lower(), operator if aware else None)


_SMALL = ("none", "weight decay", "model-aware product")


def measure(small: bool, advance: Advance) -> Measured:
    """Every term at its best weight, by validation, for 20 and 50 training images."""
    seeds, sizes = list(range(5)), (20, 50)
    names = _SMALL if small else tuple(_terms())
    tasks = [(n_train, name) for n_train in sizes for name in names]
    results = []
    for done, (n_train, name) in enumerate(tasks):
        report = partial(_advance_within, advance, done, len(tasks))
        results.append(_best_of_weights(name, n_train, seeds, report))
    return {"seeds": seeds, "results": results, "cost": _costs(names)}


def _advance_within(advance: Advance, done: int, n_tasks: int, share: float) -> None:
    advance((done + share) / n_tasks)


def _best_of_weights(name: str, n_train: int, seeds: list[int], advance: Advance) -> dict:
    term, weights = _terms()[name]
    members = [(weight, seed) for weight in weights for seed in seeds]
    operator = CompressedSensing()
    data = {seed: DigitsDataModule(operator, n_train=n_train, seed=seed) for seed in seeds}
    objectives = [_objective(term(weight, operator), seed, data[seed]) for weight, seed in members]
    ensemble = Ensemble(objectives)
    stacked = {
        split: _stacked([data[seed].samples(split) for _, seed in members])
        for split in ("train", "val", "test")
    }
    steps = iter(range(1, _STEPS + 1))
    ensemble.train(*stacked["train"], _STEPS, progress=lambda: advance(next(steps) / _STEPS))
    scores = {split: _psnr(ensemble, *pair) for split, pair in stacked.items()}
    by_weight = {split: torch.tensor(s).view(len(weights), -1) for split, s in scores.items()}
    best = int(by_weight["val"].mean(1).argmax())
    return {
        "name": name,
        "n_train": n_train,
        "weight": weights[best],
        "weight_is_at_the_edge": len(weights) > 1 and best in (0, len(weights) - 1),
        "val_psnr_by_weight": by_weight["val"].mean(1).tolist(),
        "weights": list(weights),
        "psnr": by_weight["test"][best].tolist(),
        "train_psnr": by_weight["train"][best].tolist(),
    }


def _objective(term: nn.Module | None, seed: int, data: DigitsDataModule) -> Objective:
    torch.manual_seed(seed)
    objective = Objective(MLP(24, 64, _HIDDEN), term)
    train = data.samples("train")
    # A first call makes room for the vectors of power iterations.
    objective(train.truth, train.data)
    return objective


def _stacked(samples: list[Samples]) -> tuple[Tensor, Tensor]:
    return torch.stack([s.truth for s in samples]), torch.stack([s.data for s in samples])


def _psnr(ensemble: Ensemble, truth: Tensor, data: Tensor) -> list[float]:
    estimates = ensemble.estimate(data)
    return [float(psnr(e.clamp(0, 1), t).mean()) for e, t in zip(estimates, truth, strict=True)]


def _costs(names: tuple[str, ...]) -> dict[str, float]:
    """Seconds of a training step of one network, as a multiple of the step without a term.

    The terms take turns, and each has the median of its steps.
    """
    operator, data = CompressedSensing(), DigitsDataModule(CompressedSensing(), n_train=20)
    train = data.samples("train")
    objectives = {name: _objective(_terms()[name][0](1e-3, operator), 0, data) for name in names}
    times_s: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(_TIMED_STEPS):
        for name, objective in objectives.items():
            times_s[name].append(_step_s(objective, train))
    medians = {name: sorted(t)[len(t) // 2] for name, t in times_s.items()}
    return {name: median / medians["none"] for name, median in medians.items()}


def _step_s(objective: Objective, train: Samples) -> float:
    start = perf_counter()
    loss = objective(train.truth, train.data)
    torch.autograd.grad(loss, list(objective.net.parameters()))
    return perf_counter() - start


def _of(measured: Measured, n_train: int, name: str) -> dict:
    return next(r for r in measured["results"] if (r["n_train"], r["name"]) == (n_train, name))


def _sizes(measured: Measured) -> list[int]:
    return sorted({result["n_train"] for result in measured["results"]})


def checks(measured: Measured) -> list[Check]:
    found = []
    for n_train in _sizes(measured):
        mean = {name: mean_and_spread(_of(measured, n_train, name)["psnr"])[0] for name in _SMALL}
        aware = mean["model-aware product"]
        what = f"{n_train} images: model-aware product - "
        found += [
            at_least(f"{what}weight decay (dB)", aware - mean["weight decay"], 0.2),
            at_least(f"{what}none (dB)", aware - mean["none"], 0.4),
        ]
    return found


def table(measured: Measured) -> Rows:
    sizes = _sizes(measured)
    header = ["regularisation"]
    header += [f"{n} images: PSNR (dB), weight" for n in sizes] + ["time of a step"]
    rows = []
    for name, cost in measured["cost"].items():
        cells = []
        for n_train in sizes:
            result = _of(measured, n_train, name)
            mean, spread = mean_and_spread(result["psnr"])
            edge = " (edge of the grid)" if result["weight_is_at_the_edge"] else ""
            cells.append(f"{mean:.2f} ± {spread:.2f}, {result['weight']:g}{edge}")
        rows.append([name, *cells, f"{cost:.1f} x"])
    return Rows(header, rows)


def plot(measured: Measured) -> Figure:
    sizes, names = _sizes(measured), list(measured["cost"])
    figure = Figure(figsize=(4.6 * len(sizes) + 1.4, 4.0), dpi=130, layout="constrained")
    axes = figure.subplots(1, len(sizes), squeeze=False, sharey=True)[0]
    for axis, n_train in zip(axes, sizes, strict=True):
        base = _of(measured, n_train, "none")["psnr"]
        for place, name in enumerate(names):
            psnrs = _of(measured, n_train, name)["psnr"]
            gains = [a - b for a, b in zip(psnrs, base, strict=True)]
            mean, spread = mean_and_spread(gains)
            axis.barh(place, mean, xerr=spread, color="C0" if "product" in name else "0.6")
        axis.axvline(0.0, color="k", lw=0.8)
        axis.set_title(f"{n_train} training images", fontsize=10)
        axis.set_xlabel("gain over no regularisation (dB), mean and spread of seeds")
    axes[0].set_yticks(range(len(names)), names)
    return figure


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

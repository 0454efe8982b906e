"""What the claims on regularisation share: every term of `zoo.loss` at its best weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import perf_counter
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from zoo.claim.claim import Advance, Measured, Rows, mean_and_spread
from zoo.data.samples import Samples, SamplesDataModule
from zoo.ensemble import Ensemble, Objective
from zoo.loss.jacobian import Jacobian
from zoo.loss.orthogonality import Orthogonality
from zoo.loss.spectral_product import SpectralProduct
from zoo.loss.weight_decay import WeightDecay
from zoo.metric.sample_errors import clamped_psnr
from zoo.physics.operator import Operator

_TIMED_STEPS = 15
# Rounded half decades.
_TENTHS = (1e-2, 3e-2, 0.1, 0.3, 1.0)
_THOUSANDTHS = (1e-5, 1e-4, 1e-3, 1e-2, 0.1)
_DECAYS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
_DEFECTS = (1e-5, 1e-4, 1e-3, 1e-2)

Term = Callable[[float, Operator], nn.Module | None]


def terms() -> dict[str, tuple[Term, tuple[float, ...]]]:
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


class Problem(NamedTuple):
    """Nets to be trained on few samples.

    Attributes:
        operator: linear; its data are the net's input.
        net: a fresh one; random weights by torch's generator.
        data: seed -> samples; asked for many times, so it had better remember.
        n_steps: of Adam on the whole training set.
        grids: name of a term -> weights tried in place of those of `terms`.
    """

    operator: Operator
    net: Callable[[], nn.Module]
    data: Callable[[int], SamplesDataModule]
    n_steps: int
    grids: Mapping[str, tuple[float, ...]] = MappingProxyType({})


def _advance_within(advance: Advance, done: int, n_tasks: int, share: float) -> None:
    advance((done + share) / n_tasks)


def measure_all(
    problems: Sequence[tuple[dict[str, Any], Problem]],
    names: Sequence[str],
    seeds: list[int],
    advance: Advance,
) -> Measured:
    """Every named term at its best weight, by validation, for each problem; costs of the first.

    A result bears the labels of its problem, such as {"n_train": 20}.
    """
    tasks = [(labels, problem, name) for labels, problem in problems for name in names]
    results = []
    for done, (labels, problem, name) in enumerate(tasks):
        report = partial(_advance_within, advance, done, len(tasks))
        results.append(labels | _best_of_weights(problem, name, seeds, report))
    return {"seeds": seeds, "results": results, "cost": costs(problems[0][1], names)}


def _best_of_weights(problem: Problem, name: str, seeds: list[int], advance: Advance) -> dict:
    term, usual = terms()[name]
    weights = problem.grids.get(name, usual)
    members = [(weight, seed) for weight in weights for seed in seeds]
    data = {seed: problem.data(seed) for seed in seeds}
    objectives = [
        _objective(problem, term(weight, problem.operator), seed, data[seed])
        for weight, seed in members
    ]
    ensemble = Ensemble(objectives)
    stacked = {
        split: _stacked([data[seed].samples(split) for _, seed in members])
        for split in ("train", "val", "test")
    }
    steps = iter(range(1, problem.n_steps + 1))
    report = lambda: advance(next(steps) / problem.n_steps)  # noqa: E731
    ensemble.train(*stacked["train"], problem.n_steps, progress=report)
    scores = {split: _psnr(ensemble, *pair) for split, pair in stacked.items()}
    by_weight = {split: torch.tensor(s).view(len(weights), -1) for split, s in scores.items()}
    best = int(by_weight["val"].mean(1).argmax())
    return {
        "name": name,
        "weight": weights[best],
        "weight_is_at_the_edge": len(weights) > 1 and best in (0, len(weights) - 1),
        "val_psnr_by_weight": by_weight["val"].mean(1).tolist(),
        "weights": list(weights),
        "psnr": by_weight["test"][best].tolist(),
        "train_psnr": by_weight["train"][best].tolist(),
    }


def _objective(
    problem: Problem, term: nn.Module | None, seed: int, data: SamplesDataModule
) -> Objective:
    torch.manual_seed(seed)
    objective = Objective(problem.net(), term)
    train = data.samples("train")
    # A first call makes room for the vectors of power iterations.
    objective(train.truth, train.data)
    return objective


def _stacked(samples: list[Samples]) -> tuple[Tensor, Tensor]:
    return torch.stack([s.truth for s in samples]), torch.stack([s.data for s in samples])


def _psnr(ensemble: Ensemble, truth: Tensor, data: Tensor) -> list[float]:
    estimates = ensemble.estimate(data)
    return [clamped_psnr(e, t) for e, t in zip(estimates, truth, strict=True)]


def costs(problem: Problem, names: Sequence[str]) -> dict[str, float]:
    """Seconds of a training step of one network, as a multiple of the step without a term.

    The terms take turns, and each has the median of its steps.
    """
    data = problem.data(0)
    train = data.samples("train")
    objectives = {
        name: _objective(problem, terms()[name][0](1e-3, problem.operator), 0, data)
        for name in names
    }
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


def of(measured: Measured, labels: dict[str, Any], name: str) -> dict[str, Any]:
    """The result of a term on the problem with these labels."""
    wanted = labels | {"name": name}
    return next(r for r in measured["results"] if wanted.items() <= r.items())


def mean_psnr(measured: Measured, labels: dict[str, Any], name: str) -> float:
    """Of the seeds, in dB."""
    return mean_and_spread(of(measured, labels, name)["psnr"])[0]


def table(measured: Measured, columns: dict[str, dict[str, Any]]) -> Rows:
    """A row a term, a column a problem; `columns` is heading -> labels."""
    header = ["regularisation", *(f"{heading}: PSNR (dB), weight" for heading in columns)]
    rows = []
    for name, cost in measured["cost"].items():
        cells = []
        for labels in columns.values():
            result = of(measured, labels, name)
            mean, spread = mean_and_spread(result["psnr"])
            edge = " (edge of the grid)" if result["weight_is_at_the_edge"] else ""
            cells.append(f"{mean:.2f} ± {spread:.2f}, {result['weight']:g}{edge}")
        rows.append([name, *cells, f"{cost:.1f} x"])
    return Rows([*header, "time of a step"], rows)


def plot(measured: Measured, columns: dict[str, dict[str, Any]]) -> Figure:
    """Gains over no regularisation, paired by seed."""
    names = list(measured["cost"])
    figure = Figure(figsize=(4.6 * len(columns) + 1.4, 4.0), dpi=130, layout="constrained")
    axes = figure.subplots(1, len(columns), squeeze=False, sharey=True)[0]
    for axis, (heading, labels) in zip(axes, columns.items(), strict=True):
        base = of(measured, labels, "none")["psnr"]
        for place, name in enumerate(names):
            psnrs = of(measured, labels, name)["psnr"]
            gains = [a - b for a, b in zip(psnrs, base, strict=True)]
            mean, spread = mean_and_spread(gains)
            axis.barh(place, mean, xerr=spread, color="C0" if "product" in name else "0.6")
        axis.axvline(0.0, color="k", lw=0.8)
        axis.set_title(heading, fontsize=10)
        axis.set_xlabel("gain over none (dB), mean and spread of seeds")
    axes[0].set_yticks(range(len(names)), names)
    return figure

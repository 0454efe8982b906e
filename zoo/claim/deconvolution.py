"""S4, linear: TNet from one sample is Tikhonov's solution."""

from __future__ import annotations

from functools import partial

import lightning as L
import torch
from matplotlib.figure import Figure
from torch import Tensor

from zoo.claim.claim import Advance, Check, Claim, Measured, Rows, at_least, at_most
from zoo.data.deconvolution import DeconvolutionDataModule
from zoo.data.samples import Samples
from zoo.loss.model_constrained import randomized
from zoo.metric.sample_errors import relative_error
from zoo.model.closed_form import Affine, LinearProblem
from zoo.model.model_constrained import ModelConstrained
from zoo.net.mlp import MLP
from zoo.physics.deconvolution import Deconvolution
from zoo.runtime import quiet_trainer

_RANDOMIZATION = 0.1
_ROWS = 400
_KINDS = ("naive", "model_constrained", "tnet")
_NAMES = {"naive": "nDNN", "model_constrained": "mcDNN", "tnet": "TNet"}


def measure(small: bool, advance: Advance) -> Measured:
    """Closed forms for several numbers of samples and seeds, and trained nets for one sample."""
    sizes, seeds = ((1, 20, 65, 200), 3) if small else ((1, 5, 20, 65, 200, 1000), 10)
    runs = []
    for seed in range(seeds):
        for n_train in sizes:
            runs.append(_closed_forms(n_train, seed))
            advance(0.7 * len(runs) / (seeds * len(sizes)))
    trained = [_trained(seed) for seed in range(1 if small else 3)]
    advance(1.0)
    return {"seeds": list(range(seeds)), "runs": runs, "trained_gaps": trained}


def _closed_forms(n_train: int, seed: int) -> dict[str, float]:
    operator = Deconvolution()
    data = DeconvolutionDataModule(operator, n_train=n_train, seed=seed)
    problem, test = LinearProblem(operator.matrix), data.samples("test")
    u0, weight = torch.zeros(64, dtype=torch.float64), best_weight(problem, data.samples("val"))
    tikhonov = problem.tikhonov(test.data, weight, u0)
    train = data.samples("train")
    copies = -(-_ROWS // n_train)
    rows = randomized(
        train.data.repeat(copies, 1), _RANDOMIZATION, torch.Generator().manual_seed(seed)
    )
    plain = _nets(problem, train.truth, train.data, weight)
    noisy = _nets(problem, train.truth.repeat(copies, 1), rows, weight)
    driven = problem.data_driven_prior_mean(train.truth, train.data, weight, test.data)
    result = {"n_train": n_train, "seed": seed, "weight": weight}
    result |= {"tikhonov": _error(tikhonov, test)}
    result |= {kind: _error(net(test.data), test) for kind, net in plain.items()}
    result |= {f"{kind}_randomized": _error(net(test.data), test) for kind, net in noisy.items()}
    result["gap_tnet"] = _gap(noisy["tnet"](test.data), tikhonov)
    against = problem.tikhonov(test.data, weight, driven)
    result["gap_model_constrained"] = _gap(plain["model_constrained"](test.data), against)
    return result


def best_weight(problem: LinearProblem, val: Samples) -> float:
    """The weight of Tikhonov's misfit with the least error on validation samples."""
    grid = [10 ** (step / 4) for step in range(16)]
    u0 = torch.zeros(val.truth.shape[1], dtype=val.truth.dtype)
    return min(grid, key=lambda weight: _error(problem.tikhonov(val.data, weight, u0), val))


def _nets(problem: LinearProblem, truth: Tensor, data: Tensor, weight: float) -> dict[str, Affine]:
    return {
        "naive": problem.naive(truth, data),
        "model_constrained": problem.model_constrained(truth, data, weight),
        "tnet": problem.tnet(data, weight, torch.zeros(truth.shape[1], dtype=truth.dtype)),
    }


def _trained(seed: int) -> dict[str, float]:
    """A linear net of one sample, trained by L-BFGS through Lightning, against Tikhonov."""
    operator = Deconvolution()
    data = DeconvolutionDataModule(operator, n_train=1, seed=seed)
    optimizer = partial(
        torch.optim.LBFGS, max_iter=200, history_size=100, tolerance_grad=1e-14, tolerance_change=0
    )
    problem, test = LinearProblem(operator.matrix), data.samples("test")
    weight = best_weight(problem, data.samples("val"))
    net = MLP(64, 64, whiten=True)
    model = ModelConstrained(
        net,
        operator,
        optimizer,
        weight=weight,
        randomization=_RANDOMIZATION,
        copies=_ROWS,
        noise_seed=seed,
    )
    L.seed_everything(seed, verbose=False)
    quiet_trainer(max_steps=5, precision="64-true").fit(model, data)
    tikhonov = problem.tikhonov(test.data, weight, torch.zeros(64, dtype=torch.float64))
    estimate = model(test.data).detach()
    return {"gap": _gap(estimate, tikhonov), "error": _error(estimate, test)}


def _error(estimate: Tensor, samples: Samples) -> float:
    return float(relative_error(estimate, samples.truth).mean())


def _gap(left: Tensor, right: Tensor) -> float:
    return float((left - right).norm() / right.norm())


def _mean(measured: Measured, n_train: int, key: str) -> float:
    values = [run[key] for run in measured["runs"] if run["n_train"] == n_train]
    return sum(values) / len(values)


def checks(measured: Measured) -> list[Check]:
    runs = measured["runs"]
    one = [run for run in runs if run["n_train"] == 1]
    ratios = [run["tnet_randomized"] / run["tikhonov"] for run in one]
    naive = [run["naive"] / run["tikhonov"] for run in one]
    return [
        at_most("closed-form TNet to Tikhonov", max(run["gap_tnet"] for run in runs), 1e-10),
        at_most(
            "closed-form mcDNN to Tikhonov with its data-driven prior",
            max(run["gap_model_constrained"] for run in runs),
            1e-10,
        ),
        at_most("trained TNet to Tikhonov", max(t["gap"] for t in measured["trained_gaps"]), 1e-5),
        at_most("one sample: error of randomised TNet / Tikhonov", max(ratios), 1.02),
        at_least("one sample: error of nDNN / Tikhonov", min(naive), 10.0),
    ]


def table(measured: Measured) -> Rows:
    sizes = sorted({run["n_train"] for run in measured["runs"]})
    keys = [*_KINDS, *(f"{kind}_randomized" for kind in _KINDS)]
    header = ["samples", *(_NAMES[kind] for kind in _KINDS)]
    header += [f"{_NAMES[kind]}, randomised" for kind in _KINDS] + ["Tikhonov"]
    return Rows(
        header,
        [
            [str(n), *(f"{_mean(measured, n, key):.4f}" for key in [*keys, "tikhonov"])]
            for n in sizes
        ],
    )


def plot(measured: Measured) -> Figure:
    figure = Figure(figsize=(7.0, 4.2), dpi=130, layout="constrained")
    axis = figure.subplots()
    sizes = sorted({run["n_train"] for run in measured["runs"]})
    for kind, color in zip(_KINDS, ("C3", "C1", "C0"), strict=True):
        for suffix, style in (("", "--"), ("_randomized", "-")):
            label = _NAMES[kind] + (", randomised" if suffix else "")
            errors = [_mean(measured, n, kind + suffix) for n in sizes]
            axis.loglog(sizes, errors, color + style, marker="o", ms=4, label=label)
    axis.axhline(_mean(measured, sizes[0], "tikhonov"), color="k", lw=1, label="Tikhonov")
    axis.set_xlabel("training samples")
    axis.set_ylabel("mean relative error")
    axis.set_title("1-D deconvolution, linear nets in closed form")
    axis.legend(frameon=False, fontsize=8)
    return figure


CLAIM = Claim(
    name="deconvolution",
    title="Linear deconvolution: TNet from one sample is Tikhonov's solution",
    source="Nguyen and Bui-Thanh, arXiv 2105.12033; TNet, SIAM J. Sci. Comput., "
    "doi 10.1137/22M1526708",
    published="TNet reaches Tikhonov's accuracy from 1 training sample in 1-D deconvolution "
    "(abstract).",
    experiments=("python -m zoo.train experiment=deconvolution",),
    measure=measure,
    checks=checks,
    table=table,
    plot=plot,
    remarks="Mean relative errors on 500 test samples. Where there are many samples, plain "
    "regression (nDNN) wins: from 200 on it is ahead of Tikhonov and of TNet, because it learns "
    "the prior that Tikhonov is not told. At about as many samples as data (65) it has its worst "
    "moment after the first. The claim is one about few samples.",
)

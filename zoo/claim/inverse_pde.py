"""What the claims on partial differential equations share: nets of each kind beside Tikhonov."""

from __future__ import annotations

from functools import partial
from typing import Literal, NamedTuple

import lightning as L
import torch
from matplotlib.figure import Figure
from torch import Tensor

from zoo.claim.claim import (
    Advance,
    Check,
    Measured,
    Rows,
    at_least,
    at_most,
    mean_and_spread,
    sizes_of,
)
from zoo.data.coefficients import CoefficientsDataModule
from zoo.data.samples import Samples
from zoo.metric.sample_errors import relative_error
from zoo.model.autoencoder import KINDS, Autoencoder
from zoo.model.model_constrained import ModelConstrained
from zoo.model.tikhonov import Tikhonov
from zoo.net.mlp import MLP
from zoo.net.quadratic import Quadratic
from zoo.physics.operator import Operator
from zoo.runtime import quiet_trainer

NAMES = {
    "pop": "POP",
    "mc_pop": "mcPOP",
    "opo": "OPO (nDNN)",
    "mc_opo": "mcOPO (mcDNN)",
    "taen": "TAEN (TNet)",
    "naive": "nDNN",
    "model_constrained": "mcDNN",
    "tnet": "TNet",
}
# What the operator says of copies far from a sample holds there; the sample's true parameter does
# not, and copies for the other kinds differ by a few times the noise.
_FAR = ("mc_opo", "taen", "model_constrained", "tnet")
_NEAR = {"relative_to": "sample", "randomization": 0.02}


class Setting(NamedTuple):
    """A problem and how its nets are trained.

    Attributes:
        operator: with `field`, coefficients -> what errors are taken of.
        kinds: of `Autoencoder` or of `ModelConstrained`.
        n_steps: of L-BFGS for the inverse, each of up to `iterations_a_step` iterations on rows
            with the same noise; a surrogate gets as many again.
        samples_a_step: rows of a step, copies with other noise among them.
        reach: of copies for those kinds that have the operator in the loss, relative to the prior;
            that of two of its draws if left out.
        precision: of Lightning, for the nets and the operator while they learn.
        unwhiten: see [Note: stiffness of the misfit] in `zoo.model.model_constrained`.
    """

    operator: Operator
    kinds: tuple[str, ...]
    sizes: tuple[int, ...]
    n_seeds: int
    n_steps: int
    n_test: int
    samples_a_step: int
    n_iterations: int
    iterations_a_step: int = 20
    noise: float = 0.005
    reach: float = 2.0**0.5
    precision: Literal["32-true", "64-true"] = "64-true"
    unwhiten: bool = True


def measure(setting: Setting, advance: Advance) -> Measured:
    """Errors of the field for each kind, number of samples and seed, and Tikhonov's."""
    runs, n_runs = [], setting.n_seeds * len(setting.sizes) * len(setting.kinds) + 1
    # All nets and Tikhonov are tested on the same samples, and weigh the data alike.
    reference = _data(setting, 1, 0)
    test, weight = reference.samples("test"), reference.noise_std() ** -2
    tikhonov = _tikhonov_error(setting, test, weight)
    for seed in range(setting.n_seeds):
        for n_train in setting.sizes:
            for kind in setting.kinds:
                advance((len(runs) + 1) / n_runs)
                data = _data(setting, n_train, seed)
                L.seed_everything(seed, verbose=False)
                model = _model(setting, kind, n_train, seed, weight)
                _fitted(setting, model, data)
                labels = {"kind": kind, "n_train": n_train, "seed": seed}
                runs.append(labels | _errors(setting, model, test))
    advance(1.0)
    return {"seeds": list(range(setting.n_seeds)), "tikhonov": tikhonov, "runs": runs}


def _data(setting: Setting, n_train: int, seed: int) -> CoefficientsDataModule:
    # The training data are the seed's.
    sizes = {"n_train": n_train, "n_val": 1, "n_test": setting.n_test}
    data = CoefficientsDataModule(setting.operator, setting.noise, seed=seed, **sizes)
    data.dtype = torch.float64
    return data


def _tikhonov_error(setting: Setting, test: Samples, weight: float) -> float:
    solver = Tikhonov(setting.operator, weight, n_iterations=setting.n_iterations)
    # In chunks, or else memory would be that of all samples' time steps.
    estimate = torch.cat([solver(chunk) for chunk in test.data.split(50)])
    return _field_error(setting, estimate, test.truth)


@torch.no_grad()
def _field_error(setting: Setting, estimate: Tensor, truth: Tensor) -> float:
    field = setting.operator.field
    return float(relative_error(field(estimate), field(truth)).mean())


@torch.no_grad()
def _errors(setting: Setting, model: ModelConstrained, test: Samples) -> dict[str, float]:
    result = {"error": _field_error(setting, model.eval()(test.data), test.truth)}
    if isinstance(model, Autoencoder):
        predicted, clean = model.surrogate(test.truth), setting.operator(test.truth)
        result["forward_error"] = float(relative_error(predicted, clean).mean())
    return result


def _fitted(setting: Setting, model: ModelConstrained, data: CoefficientsDataModule) -> None:
    data.dtype = torch.float64 if setting.precision == "64-true" else torch.float32
    # The operator is all models' own, and the last one was left in eval mode.
    quiet_trainer(setting.n_steps, precision=setting.precision).fit(model.train(), data)
    if isinstance(model, Autoencoder):
        # The second half has an optimizer of its own: a history of the first would mislead it.
        model.n_first_steps = 0
        quiet_trainer(setting.n_steps, precision=setting.precision).fit(model.train(), data)
    model.double()


def _model(setting: Setting, kind: str, n_train: int, seed: int, weight: float) -> ModelConstrained:
    operator = setting.operator
    n_data, n_coefficients = operator.codomain.shape[0], operator.domain.shape[0]
    net = Quadratic(n_data, n_coefficients, whiten=True, unwhiten=setting.unwhiten)
    optimizer = partial(
        torch.optim.LBFGS, max_iter=setting.iterations_a_step, line_search_fn="strong_wolfe"
    )
    common = {
        "optimizer": optimizer,
        "kind": kind,
        "weight": weight,
        **({"relative_to": "prior", "randomization": setting.reach} if kind in _FAR else _NEAR),
        "copies": max(1, setting.samples_a_step // n_train),
        "noise_seed": seed,
    }
    if kind not in KINDS:
        return ModelConstrained(net, operator, **common)
    surrogate = MLP(n_coefficients, n_data, (64,), "tanh")
    return Autoencoder(net, surrogate, operator, n_first_steps=setting.n_steps, **common)


def errors(measured: Measured, kind: str, n_train: int, key: str = "error") -> list[float]:
    """Of the seeds."""
    return [
        run[key]
        for run in measured["runs"]
        if (run["kind"], run["n_train"]) == (kind, n_train) and key in run
    ]


def ratio_and_spread(measured: Measured, kind: str, n_train: int) -> tuple[float, float]:
    """Of the seeds' mean errors over Tikhonov's."""
    return mean_and_spread(
        [error / measured["tikhonov"] for error in errors(measured, kind, n_train)]
    )


def ratio(measured: Measured, kind: str, n_train: int) -> float:
    """Their mean."""
    return ratio_and_spread(measured, kind, n_train)[0]


def checks(measured: Measured, tnet: str, naive: str, limit: float) -> list[Check]:
    """TNet within `limit` of Tikhonov at 1 and 100 samples, a naive net of one sample far off."""
    found = []
    for n_train in (1, 100):
        what = f"{n_train} sample{'s' * (n_train > 1)}: error of TNet / Tikhonov"
        found.append(at_most(what, ratio(measured, tnet, n_train), limit))
    naive_ratio = ratio(measured, naive, 1)
    return [*found, at_least("1 sample: error of nDNN / Tikhonov", naive_ratio, 2.0)]


def table(measured: Measured, published: dict[str, tuple[str, str]]) -> Rows:
    """Relative errors in per cent, beside the published ones of one and 100 samples."""
    kinds, sizes = list(dict.fromkeys(run["kind"] for run in measured["runs"])), sizes_of(measured)
    header = ["method"]
    for n_train in sizes:
        header += [f"{n_train}: measured", f"{n_train}: published"]
    forward = sizes if any("forward_error" in run for run in measured["runs"]) else []
    header += [f"forward, {n_train}" for n_train in forward]
    rows = []
    for kind in kinds:
        cells = []
        for n_train, known in zip(sizes, published.get(kind, ("", "")), strict=True):
            mean, spread = mean_and_spread(errors(measured, kind, n_train))
            cells += [f"{100 * mean:.2f} ± {100 * spread:.2f}", known]
        cells += [_forward(measured, kind, n_train) for n_train in forward]
        rows.append([NAMES[kind], *cells])
    known = published["tikhonov"][0]
    last = [f"{100 * measured['tikhonov']:.2f}", known] * len(sizes)
    rows.append(["Tikhonov", *last, *[""] * len(forward)])
    return Rows(header, rows)


def _forward(measured: Measured, kind: str, n_train: int) -> str:
    found = errors(measured, kind, n_train, "forward_error")
    return f"{mean_and_spread(found)[0]:.2e}" if found else ""


def plot(measured: Measured, title: str) -> Figure:
    kinds, sizes = list(dict.fromkeys(run["kind"] for run in measured["runs"])), sizes_of(measured)
    figure = Figure(figsize=(7.2, 3.8), dpi=130, layout="constrained")
    axis = figure.subplots()
    height = 0.8 / len(sizes)
    for place, n_train in enumerate(sizes):
        pairs = [mean_and_spread(errors(measured, kind, n_train)) for kind in kinds]
        places = [i + (place - 0.5 * (len(sizes) - 1)) * height for i in range(len(kinds))]
        means, spreads = [100 * m for m, _ in pairs], [100 * s for _, s in pairs]
        label = f"{n_train} training sample{'s' * (n_train > 1)}"
        axis.barh(places, means, height, xerr=spreads, color=f"C{place}", label=label)
    axis.axvline(100 * measured["tikhonov"], color="k", ls="--", label="Tikhonov")
    axis.set_yticks(range(len(kinds)), [NAMES[kind] for kind in kinds])
    axis.invert_yaxis()
    axis.set_xlabel("mean relative error of the field (%)")
    axis.set_title(title, fontsize=10)
    figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=len(sizes) + 1)
    return figure

"""S5: learning from pairs attains the rates, without knowing the operator."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import lightning as L
import numpy as np
import torch
from matplotlib.figure import Figure

from zoo.claim.claim import Advance, Check, Claim, Measured, Rows, at_most, between, mean_and_spread
from zoo.data.besov import BesovDataModule, prior_variances, random_signals
from zoo.model.dyadic_filters import DyadicFilters, Problem
from zoo.model.unknown_operator import UnknownOperator
from zoo.net.multiscale_unet import MultiscaleUNet
from zoo.physics.smoothing import Smoothing, smoothing_multiplier
from zoo.runtime import quiet_trainer
from zoo.scheduler.cosine import CosineDecay

# 1,023 frequencies: f ~ N(0, k^(-2s - 1)) and T = k^-beta with s = beta = 1.
_N_GRID = 2048
_NOISES = tuple(10.0**e for e in np.linspace(-5.0, -2.5, 6))
_NOISE = 1e-4
_SIZES = (16, 32, 64, 128, 256, 512)
_UNET_SIZES = (64, 512, 4096)


def measure(small: bool, advance: Advance) -> Measured:
    """Slopes of the closed form, then the trained U-net."""
    seeds = list(range(5 if small else 10))
    by_noise = {
        str(n_weights): [_risks(n_weights, noise, 512, 0) for noise in _NOISES]
        for n_weights in (3, 1)
    }
    advance(0.1)
    excess = []
    for place, size in enumerate(_SIZES):
        runs = [_risks(3, _NOISE, size, seed) for seed in seeds]
        excess.append([run["risk"] - run["oracle"] for run in runs])
        advance(0.1 + 0.2 * (place + 1) / len(_SIZES))
    unet: dict[str, list[float]] = {str(size): [] for size in _UNET_SIZES}
    unet_seeds = seeds[: 1 if small else 3]
    for seed in unet_seeds:
        for place, size in enumerate(_UNET_SIZES):
            unet[str(size)].append(_unet_risk_over_bayes(size, seed))
            done = (seed * len(_UNET_SIZES) + place + 1) / len(unet_seeds) / len(_UNET_SIZES)
            advance(0.3 + 0.7 * done)
    return {"seeds": seeds, "by_noise": by_noise, "excess": excess, "unet": unet}


def _risks(n_weights: int, noise: float, n_samples: int, seed: int) -> dict[str, float]:
    """Exact risks of the fitted response, the best of the class, and Wiener's filter."""
    variances, multiplier = prior_variances(_N_GRID, 1.0), smoothing_multiplier(_N_GRID, 1.0)
    generator = torch.Generator().manual_seed(seed)
    truth = random_signals(n_samples, variances, generator)
    clean = torch.fft.irfft(torch.fft.rfft(truth) * multiplier, n=_N_GRID)
    data = clean + noise * torch.randn(clean.shape, dtype=clean.dtype, generator=generator)
    problem, filters = Problem(variances, multiplier, noise**2), DyadicFilters(_N_GRID, n_weights)
    return {
        "risk": problem.risk(filters.fit(truth, data)),
        "oracle": problem.risk(filters.oracle(problem)),
        "bayes": problem.risk(problem.bayes_response()),
    }


def _unet_risk_over_bayes(n_train: int, seed: int, n_steps: int = 1500) -> float:
    """Mean squared error on 500 test signals of a U-net trained through Lightning."""
    data = BesovDataModule(Smoothing(256), noise=1e-3, n_train=n_train, seed=seed)
    L.seed_everything(seed, verbose=False)
    model = UnknownOperator(
        MultiscaleUNet(5, 7, channels=8, learned=True),
        partial(torch.optim.Adam, lr=0.01),
        partial(CosineDecay, n_steps=n_steps),
    )
    quiet_trainer(n_steps).fit(model, data)
    test = data.samples("test")
    with torch.no_grad():
        squared = (model(test.data) - test.truth).square().sum(1).mean()
    return float(squared) / data.bayes_risk()


def _slope(x: tuple[float, ...], y: list[float]) -> float:
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def _noise_slope(measured: Measured, n_weights: int, key: str) -> float:
    return _slope(_NOISES, [run[key] for run in measured["by_noise"][str(n_weights)]])


def _excess(measured: Measured) -> list[float]:
    return [mean_and_spread(values)[0] for values in measured["excess"]]


def _unet_means(measured: Measured) -> list[float]:
    return [mean_and_spread(measured["unet"][str(size)])[0] for size in _UNET_SIZES]


def checks(measured: Measured) -> list[Check]:
    unet, over_samples = _unet_means(measured), _slope(_SIZES, _excess(measured))
    falls = all(later <= earlier for earlier, later in pairwise(unet))
    return [
        between("slope of risk against noise", _noise_slope(measured, 3, "risk"), 0.75, 0.85),
        between("slope of excess risk over samples", over_samples, -1.15, -0.85),
        at_most("slope with one weight a scale", _noise_slope(measured, 1, "risk"), 0.65),
        Check(
            "U-net: risk falls from 64 to 512 to 4096 samples",
            ", ".join(f"{value:.3f}" for value in unet),
            falls,
        ),
        at_most("U-net of 4096 samples: risk / Bayes risk", unet[-1], 1.5),
    ]


def table(measured: Measured) -> Rows:
    rows = [
        [f"risk ~ noise^x, {name}", f"{_noise_slope(measured, n_weights, key):.3f}"]
        for name, n_weights, key in (
            ("three weights a scale, fitted to 512 samples", 3, "risk"),
            ("three weights a scale, best of the class", 3, "oracle"),
            ("one weight a scale, fitted", 1, "risk"),
            ("Bayes", 3, "bayes"),
        )
    ]
    rows.append(["risk ~ noise^x, theory 4s / (2s + 2 beta + 1)", "0.800"])
    rows.append(["excess risk ~ samples^x", f"{_slope(_SIZES, _excess(measured)):.3f}"])
    for size in _UNET_SIZES:
        mean, spread = mean_and_spread(measured["unet"][str(size)])
        rows.append([f"U-net, {size} samples: risk / Bayes risk", f"{mean:.3f} ± {spread:.3f}"])
    return Rows(["quantity", "measured"], rows)


def plot(measured: Measured) -> Figure:
    figure = Figure(figsize=(12.0, 3.8), dpi=130, layout="constrained")
    noise_axis, samples_axis, unet_axis = figure.subplots(1, 3)
    for n_weights, color in ((3, "C0"), (1, "C3")):
        risks = [run["risk"] for run in measured["by_noise"][str(n_weights)]]
        noise_axis.loglog(
            _NOISES, risks, color + "o-", label=f"{n_weights} weight{'s' * (n_weights > 1)} a scale"
        )
    bayes = [run["bayes"] for run in measured["by_noise"]["3"]]
    noise_axis.loglog(_NOISES, bayes, "k--", label="Bayes")
    noise_axis.set(xlabel="standard deviation of the noise", ylabel="risk")
    noise_axis.legend(frameon=False)
    excess = _excess(measured)
    samples_axis.loglog(_SIZES, excess, "C0o-", label="measured")
    reference = [excess[0] * _SIZES[0] / size for size in _SIZES]
    samples_axis.loglog(_SIZES, reference, "k--", label="slope -1")
    samples_axis.set(xlabel="training samples", ylabel="excess risk")
    # Less than two decades: the library's own labels run into one another.
    samples_axis.set_xticks(_SIZES, [str(size) for size in _SIZES])
    samples_axis.minorticks_off()
    samples_axis.legend(frameon=False)
    unet_axis.semilogx(_UNET_SIZES, _unet_means(measured), "C0o-", label="U-net")
    unet_axis.axhline(1.0, color="k", ls="--", label="Bayes")
    unet_axis.set(xlabel="training samples", ylabel="risk / Bayes risk")
    unet_axis.legend(frameon=False)
    return figure


CLAIM = Claim(
    name="unknown_operator",
    title="Unknown operator: multiscale networks from pairs attain the rates",
    source="del Alamo, arXiv 2108.02744; Electronic Journal of Statistics 17, 2023, 723-768",
    published="A theory paper: rates in the number of training points and the noise level, "
    "minimax optimal with many training data (abstract). It has no tables to compare with.",
    experiments=("python -m zoo.train experiment=unknown_operator",),
    measure=measure,
    checks=checks,
    table=table,
    plot=plot,
    remarks="The slopes are those of the closed form of a linear class on dyadic bands, with exact "
    "risks. One weight a scale cannot invert the operator inside a scale, and fails: that is why "
    "the class needs convolutions. The U-net (levels 5, taps 7, learned wavelets, hidden ReLU "
    "layers of 8 channels, 922 weights) is trained for 1,500 steps of Adam.",
)

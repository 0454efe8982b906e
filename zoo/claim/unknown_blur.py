"""S5 in two dimensions: an unknown blur of photographs, against Wiener with the true operator."""

from __future__ import annotations

from functools import partial

import lightning as L
import torch
from matplotlib.figure import Figure
from torch import nn

from zoo.claim.claim import (
    Advance,
    Check,
    Claim,
    Measured,
    Rows,
    at_least,
    mean_and_spread,
    sizes_of,
)
from zoo.claim.photographs import photograph_patches
from zoo.metric.sample_errors import clamped_psnr
from zoo.model.unknown_operator import UnknownOperator
from zoo.net.multiscale_unet import MultiscaleUNet
from zoo.net.residual_unet import ResidualUNet
from zoo.physics.blur import Blur
from zoo.runtime import quiet_trainer
from zoo.scheduler.cosine import CosineDecay
from zoo.solver.wiener import Wiener

_NAMES = {"multiscale": "multiscale U-net", "plain": "plain U-net"}
_N_WIENER = 2000
# More pairs are worth more steps; chosen on validation patches of another seed.
_N_STEPS = {16: 300, 128: 600, 1024: 2000}


def measure(small: bool, advance: Advance) -> Measured:
    """PSNR on test patches of both nets for several training sets, and of Wiener's filter."""
    sizes, seeds = (16, 1024) if small else tuple(_N_STEPS), range(1 if small else 2)
    runs = []
    for seed in seeds:
        for n_train in sizes:
            for name in _NAMES:
                runs.append(_trained(name, n_train, seed))
                advance(len(runs) / (len(seeds) * len(sizes) * len(_NAMES)))
    weights = {name: sum(p.numel() for p in _net(name).parameters()) for name in _NAMES}
    return {"seeds": list(seeds), "runs": runs, "weights": weights, **_references()}


def _net(name: str) -> nn.Module:
    if name == "plain":
        return ResidualUNet(channels=8, n_levels=3)
    return MultiscaleUNet(3, 5, dims=2, channels=8, learned=True)


def _trained(name: str, n_train: int, seed: int) -> dict[str, float | int | str]:
    data, n_steps = photograph_patches(Blur(), n_train=n_train, seed=seed), _N_STEPS[n_train]
    L.seed_everything(seed, verbose=False)
    model = UnknownOperator(
        _net(name), partial(torch.optim.Adam, lr=0.003), partial(CosineDecay, n_steps=n_steps)
    )
    quiet_trainer(n_steps).fit(model, data)
    test = data.samples("test")
    with torch.no_grad():
        estimate = model.eval()(test.data)
    score = clamped_psnr(estimate, test.truth)
    return {"net": name, "n_train": n_train, "seed": seed, "psnr": score}


def _references() -> dict[str, float]:
    data = photograph_patches(Blur(), n_train=_N_WIENER, seed=0)
    test = data.samples("test")
    wiener = Wiener(data.operator, data.samples("train").truth, data.noise)
    return {
        "wiener": clamped_psnr(wiener(test.data), test.truth),
        "measurement": clamped_psnr(test.data, test.truth),
    }


def _scores(measured: Measured, net: str, n_train: int) -> list[float]:
    return [r["psnr"] for r in measured["runs"] if (r["net"], r["n_train"]) == (net, n_train)]


def checks(measured: Measured) -> list[Check]:
    few, many = sizes_of(measured)[0], sizes_of(measured)[-1]
    at_few = {name: mean_and_spread(_scores(measured, name, few))[0] for name in _NAMES}
    at_many = mean_and_spread(_scores(measured, "multiscale", many))[0]
    gain = at_few["multiscale"] - at_few["plain"]
    return [
        at_least(f"{few} pairs: multiscale - plain U-net (dB)", gain, 0.0),
        at_least(
            f"{many} pairs: multiscale U-net - Wiener with the true operator (dB)",
            at_many - measured["wiener"],
            0.0,
        ),
    ]


def table(measured: Measured) -> Rows:
    sizes = sizes_of(measured)
    rows = []
    for name, label in _NAMES.items():
        pairs = [mean_and_spread(_scores(measured, name, n)) for n in sizes]
        cells = [f"{mean:.2f} ± {spread:.2f}" for mean, spread in pairs]
        rows.append([label, f"{measured['weights'][name]:,}", *cells])
    rows.append(["Wiener, true operator", "", *[f"{measured['wiener']:.2f}"] * len(sizes)])
    rows.append(["the measurement itself", "", *[f"{measured['measurement']:.2f}"] * len(sizes)])
    return Rows(["PSNR (dB)", "weights", *(f"{n} pairs" for n in sizes)], rows)


def plot(measured: Measured) -> Figure:
    figure = Figure(figsize=(6.4, 4.0), dpi=130, layout="constrained")
    axis, sizes = figure.subplots(), sizes_of(measured)
    for name, label in _NAMES.items():
        pairs = [mean_and_spread(_scores(measured, name, n)) for n in sizes]
        means, spreads = [m for m, _ in pairs], [s for _, s in pairs]
        axis.errorbar(sizes, means, spreads, marker="o", capsize=3, label=label)
    axis.axhline(measured["wiener"], color="k", ls="--", label="Wiener, true operator")
    axis.axhline(measured["measurement"], color="0.6", ls=":", label="measurement")
    axis.set_xscale("log")
    axis.set(xlabel="training pairs", ylabel="PSNR on test photographs (dB)")
    axis.set_title("Gray patches of 32 x 32, unknown blur of 1.5 pixels", fontsize=10)
    axis.legend(frameon=False)
    return figure


CLAIM = Claim(
    name="unknown_blur",
    title="An unknown blur of photographs: multiscale U-net, plain U-net, Wiener",
    source="del Alamo, arXiv 2108.02744; Electronic Journal of Statistics 17, 2023, 723-768",
    published="A theory paper: it has no such experiment to compare with.",
    experiments=("python -m zoo.train experiment=unknown_blur",),
    measure=measure,
    checks=checks,
    table=table,
    plot=plot,
    remarks="Patches of 32 x 32 pixels out of scikit-image's photographs, other photographs in "
    "each split; a periodic Gaussian blur of 1.5 pixels and noise of 0.02. The nets see pairs "
    "alone, for 300 steps of 16 of them, 600 of 128 and 2,000 of 1,024: with 150 the multiscale "
    "U-net stayed 0.3 dB below Wiener. From few pairs it is ahead of the plain one, from many the "
    "plain one, with six times its weights, passes it. Wiener's filter is given the operator, the "
    "noise, and the spectrum of 2,000 training patches.",
)

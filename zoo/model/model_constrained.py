"""Nets that learn an inverse with the forward operator inside the loss: nDNN, mcDNN and TNet.

Nguyen and Bui-Thanh 2021, arXiv 2105.12033; TNet: SIAM J. Sci. Comput., doi 10.1137/22M1526708.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from zoo.data.samples import Sample
from zoo.loss.covariance import Unwhitening, WeightedSquaredNorm, Whitening
from zoo.loss.model_constrained import (
    RELATIVE_TO,
    SquaredNorm,
    model_constrained_loss,
    naive_loss,
    randomization_std,
    randomized,
    tnet_loss,
)
from zoo.model.inverse import Inverse
from zoo.model.tikhonov import posterior_precision
from zoo.physics.operator import Operator

KINDS = ("naive", "model_constrained", "tnet")


class ModelConstrained(Inverse):
    """Trains `net`: y -> u by one of the losses of `zoo.loss.model_constrained`.

    With `kind="tnet"` the true parameters are not looked at. A net with a `whitening` has it fitted
    to the training data when training begins, one with an `unwhitening` to the operator's
    derivative at the prior mean (see [Note: stiffness of the misfit]).

    [Note: stiffness of the misfit] Its weight is 1 over the variance of the noise, and what the
    data hardly see stays with the prior: with G linear, the Hessian of mcDNN and TNet in a net's
    output is H = I + weight J^T J, of a condition of 1e4 and more. A net that gives v, and
    H^(-1/2) v as its estimate, has the identity in its place, so that a few steps of L-BFGS do. It
    changes neither the nets that can be learned nor the losses. nDNN's Hessian is the identity.

    [Note: noise of the randomisation] It is drawn from (seed, epoch, batch, rank): other noise on
    every rank, by design, since ranks hold other samples; the same noise for each evaluation that
    an optimizer like L-BFGS makes within a step; and the same run from the same seed.

    Args:
        net: data [N, m] -> parameter [N, n].
        operator: G, differentiable.
        kind: "naive" (nDNN), "model_constrained" (mcDNN) or "tnet".
        weight: alpha of mcDNN, lambda of TNet.
        prior_mean: u0 of TNet, the same for every entry.
        randomization: e of eps ~ N(0, e^2 diag(y)^2), or N(0, e^2 mean(y^2) I) where
            `relative_to` is "sample" instead of "entry"; see `randomization_std`.
        copies: how often each sample of a batch is taken, each time with other noise.
        noise_seed: of the randomisation.
        parameter_norm, data_norm: squared norms [N, ...] -> [N]; None is the plain one.

    Raises:
        ValueError: `kind` or `relative_to` is not known.
    """

    def __init__(
        self,
        net: nn.Module,
        operator: Operator,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        kind: Literal["naive", "model_constrained", "tnet"] = "tnet",
        weight: float = 1.0,
        prior_mean: float = 0.0,
        randomization: float = 0.0,
        copies: int = 1,
        noise_seed: int = 0,
        parameter_norm: SquaredNorm | None = None,
        data_norm: SquaredNorm | None = None,
        relative_to: Literal["entry", "sample"] = "entry",
    ) -> None:
        super().__init__(net, optimizer, scheduler)
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {KINDS}, got {kind!r}; try model.kind=tnet")
        if relative_to not in RELATIVE_TO:
            raise ValueError(
                f"relative_to must be one of {RELATIVE_TO}, got {relative_to!r}; try "
                "model.relative_to=sample"
            )
        self.operator = operator
        self.kind = kind
        self.weight = weight
        self.prior_mean = prior_mean
        self.randomization = randomization
        self.relative_to = relative_to
        self.copies = copies
        self.noise_seed = noise_seed
        self.parameter_norm = parameter_norm or WeightedSquaredNorm()
        self.data_norm = data_norm or WeightedSquaredNorm()

    def on_fit_start(self) -> None:
        whitening = getattr(self.net, "whitening", None)
        if isinstance(whitening, Whitening):
            data = self.trainer.datamodule.samples("train").data.flatten(1).to(self.device)
            whitening.fit(data, randomization_std(data, self.randomization, self.relative_to))
        unwhitening = getattr(self.net, "unwhitening", None)
        if isinstance(unwhitening, Unwhitening) and self.kind != "naive":
            # [Note: stiffness of the misfit]
            mean = torch.full_like(unwhitening.mean, self.prior_mean)
            precision = posterior_precision(self.operator, mean[None], self.weight)[0]
            unwhitening.fit(mean, precision.detach())

    def training_step(self, batch: Sample, batch_idx: int) -> Tensor:
        return super().training_step(self._randomized(batch, batch_idx), batch_idx)

    def loss(self, batch: Sample) -> Tensor:
        estimate = self(batch.data)
        norms = (self.parameter_norm, self.data_norm)
        if self.kind == "naive":
            return naive_loss(estimate, batch.truth, self.parameter_norm)
        if self.kind == "model_constrained":
            return model_constrained_loss(
                estimate, batch.truth, batch.data, self.operator, self.weight, *norms
            )
        prior_mean = torch.full_like(estimate, self.prior_mean)
        return tnet_loss(estimate, prior_mean, batch.data, self.operator, self.weight, *norms)

    def _randomized(self, batch: Sample, batch_idx: int) -> Sample:
        # [Note: noise of the randomisation]
        place = (self.noise_seed, self.current_epoch, batch_idx, self.global_rank)
        seed = int(np.random.SeedSequence(place).generate_state(1)[0])
        generator = torch.Generator().manual_seed(seed)
        index, truth, data = (tensor.repeat_interleave(self.copies, 0) for tensor in batch)
        if self.randomization > 0:
            data = randomized(data, self.randomization, generator, self.relative_to)
        return Sample(index, truth, data)

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
from zoo.loss.covariance import Unwhitening, WeightedSquaredNorm, Whitening, cholesky_factor
from zoo.loss.model_constrained import (
    RELATIVE_TO,
    SquaredNorm,
    model_constrained_loss,
    naive_loss,
    randomization_covariance,
    randomized,
    tnet_loss,
)
from zoo.model.inverse import Inverse
from zoo.model.tikhonov import posterior_precision, predicted_covariance
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

    [Note: as broad as the prior] From one sample a net learns the inverse as far as its copies
    reach. With `relative_to="prior"`, eps ~ N(0, e^2 (J J^T + I / weight)), J the operator's
    derivative at the prior mean: e times as far, in every direction, as data differ by a prior
    N(u0, I) and the noise. Two draws of the prior differ by sqrt(2) times its deviation, so that
    e = 1.41 reaches from any sample to the others. The same noise on every entry either does not
    reach far in the directions that the data see well, or asks for parameters far from the prior in
    those that they hardly see. The papers have "entry".

    Args:
        net: data [N, m] -> parameter [N, n].
        operator: G, differentiable.
        kind: "naive" (nDNN), "model_constrained" (mcDNN) or "tnet".
        weight: alpha of mcDNN, lambda of TNet.
        prior_mean: u0 of TNet, the same for every entry.
        randomization: e of eps ~ N(0, e^2 diag(y)^2), or N(0, e^2 mean(y^2) I) where
            `relative_to` is "sample" instead of "entry"; see `randomization_std`. Where it is
            "prior", see [Note: as broad as the prior].
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
        relative_to: Literal["entry", "sample", "prior"] = "entry",
    ) -> None:
        super().__init__(net, optimizer, scheduler)
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {KINDS}, got {kind!r}; try model.kind=tnet")
        if relative_to not in (*RELATIVE_TO, "prior"):
            raise ValueError(
                f"relative_to must be one of {(*RELATIVE_TO, 'prior')}, got {relative_to!r}; try "
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
        # Of copies, where that is the prior's; lower triangular, [m, m].
        self._reach: Tensor | None = None

    def on_fit_start(self) -> None:
        dtype = next(self.net.parameters()).dtype
        mean = torch.full(self.operator.domain.shape, self.prior_mean).to(self.device, dtype)
        if self.relative_to == "prior":
            # [Note: as broad as the prior]
            covariance = predicted_covariance(self.operator, mean[None], self.weight)[0].detach()
            factor = cholesky_factor(covariance, "the covariance of predicted data")
            self._reach = self.randomization * factor
        whitening = getattr(self.net, "whitening", None)
        if isinstance(whitening, Whitening):
            data = self.trainer.datamodule.samples("train").data.flatten(1).to(self.device)
            whitening.fit(data, self._noise_covariance(data))
        unwhitening = getattr(self.net, "unwhitening", None)
        if isinstance(unwhitening, Unwhitening) and self.kind != "naive":
            # [Note: stiffness of the misfit]
            precision = posterior_precision(self.operator, mean[None], self.weight)[0]
            unwhitening.fit(mean, precision.detach())

    def training_step(self, batch: Sample, batch_idx: int) -> Tensor:
        loss = super().training_step(self._randomized(batch, batch_idx), batch_idx)
        # Too long a step can leave what the operator's solver can carry: a line search comes back
        # from an infinite loss, but takes NaN for a good one.
        return torch.where(loss.isnan(), torch.inf, loss)

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
        if self._reach is not None:
            noise = torch.randn(data.shape, dtype=data.dtype, generator=generator).to(data.device)
            data = data + noise @ self._reach.to(data).T
        elif self.randomization > 0:
            data = randomized(data, self.randomization, generator, self.relative_to)
        return Sample(index, truth, data)

    def _noise_covariance(self, data: Tensor) -> Tensor:
        if self._reach is not None:
            return self._reach @ self._reach.T
        return randomization_covariance(data, self.randomization, self.relative_to)

"""Autoencoders that learn an inverse and a surrogate of the forward operator: POP, OPO, TAEN.

Nguyen and Bui-Thanh 2021, arXiv 2105.12033; TAEN: Comput. Methods Appl. Mech. Eng. 446, 2025.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from zoo.data.samples import Sample
from zoo.errors import PhysicsError
from zoo.loss.autoencoder import surrogate_loss
from zoo.loss.model_constrained import SquaredNorm, model_constrained_loss, naive_loss
from zoo.metric.sample_errors import SampleErrors, relative_error
from zoo.model.model_constrained import ModelConstrained
from zoo.physics.operator import Operator


class _Kind(NamedTuple):
    """What a kind learns.

    Attributes:
        inverse: loss of the inverse, of `zoo.model.model_constrained.KINDS`.
        surrogate_first: from parameters to observations and back (POP).
        target: of the surrogate: "data", "operator" (G of the estimate) or "state" (F of it).
    """

    inverse: str
    surrogate_first: bool
    target: str


KINDS = {
    "pop": _Kind("naive", True, "data"),
    "mc_pop": _Kind("model_constrained", True, "data"),
    "opo": _Kind("naive", False, "data"),
    "mc_opo": _Kind("model_constrained", False, "operator"),
    "mc_opo_full": _Kind("model_constrained", False, "state"),
    "taen": _Kind("tnet", False, "operator"),
    "taen_full": _Kind("tnet", False, "state"),
}


class Autoencoder(ModelConstrained):
    """Trains `net`: y -> u and `surrogate`: u -> y (or the state), one after the other.

    Called with data, it is the inverse. Logs, beside what `Inverse` does, as means over the samples
    `val/` and `test/`: `forward_error`, ||surrogate(u) - G(u)|| / ||G(u)|| at the true parameters
    (of the state for kinds that are called full), and `total_error`, the sum of both relative
    errors, by which to choose a checkpoint: each half alone stands still while the other learns.

    [Note: the half that rests] Its parameters enter the loss with a factor 0, so that DDP, which
    does not know that they rest, waits for nothing; their gradients are dropped before the
    optimizer's step, or else its momentum would go on moving them.

    Args:
        net: data [N, m] -> parameter [N, n].
        surrogate: parameter [N, n] -> data [N, m], or the state flattened, [N, ...].
        kind: one of `KINDS`.
        n_first_steps: optimizer steps for the encoder; the steps after these are the decoder's.

    Other arguments are those of `ModelConstrained`.

    Raises:
        ValueError: `kind` is not known.
        PhysicsError: a kind that is called full, and an operator without `state`.
    """

    def __init__(
        self,
        net: nn.Module,
        surrogate: nn.Module,
        operator: Operator,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        kind: str = "taen",
        n_first_steps: int = 1000,
        weight: float = 1.0,
        prior_mean: float = 0.0,
        randomization: float = 0.0,
        copies: int = 1,
        noise_seed: int = 0,
        parameter_norm: SquaredNorm | None = None,
        data_norm: SquaredNorm | None = None,
        relative_to: Literal["entry", "sample", "prior"] = "entry",
    ) -> None:
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {sorted(KINDS)}, got {kind!r}")
        self._require_state(kind, operator)
        norms = (parameter_norm, data_norm)
        rest = (weight, prior_mean, randomization, copies, noise_seed, *norms, relative_to)
        super().__init__(net, operator, optimizer, scheduler, KINDS[kind].inverse, *rest)
        self.surrogate = surrogate
        self.autoencoder = KINDS[kind]
        self.n_first_steps = n_first_steps

    @staticmethod
    def _require_state(kind: str, operator: Operator) -> None:
        if KINDS[kind].target == "state" and not hasattr(operator, "state"):
            raise PhysicsError(
                f"kind={kind!r} learns the whole state. Expected an operator with a method "
                f"state(u), got {type(operator).__name__}. Next, try kind="
                f"{kind.removesuffix('_full')}."
            )

    @property
    def surrogate_learns(self) -> bool:
        is_first = self.trainer.global_step < self.n_first_steps
        return is_first == self.autoencoder.surrogate_first

    def loss(self, batch: Sample) -> Tensor:
        if self.surrogate_learns:
            return self.surrogate_loss(batch) + _zero_times(self.net)
        return self.inverse_loss(batch) + _zero_times(self.surrogate)

    def surrogate_loss(self, batch: Sample) -> Tensor:
        """The loss of `surrogate`; that of a decoder takes `net` as it is."""
        if self.autoencoder.surrogate_first:
            return surrogate_loss(self.surrogate(batch.truth), batch.data, self.data_norm)
        with torch.no_grad():
            estimate = self(batch.data)
            target = batch.data
            if self.autoencoder.target != "data":
                target = self._forward_map(estimate)
        return surrogate_loss(self.surrogate(estimate), target, self._surrogate_norm())

    def inverse_loss(self, batch: Sample) -> Tensor:
        """The loss of `net`; POP's takes `surrogate` as it is."""
        if not self.autoencoder.surrogate_first:
            return super().loss(batch)
        with torch.no_grad():
            data = self.surrogate(batch.truth)
        estimate = self(data)
        if self.kind == "naive":
            return naive_loss(estimate, batch.truth, self.parameter_norm)
        norms = (self.parameter_norm, self.data_norm)
        return model_constrained_loss(
            estimate, batch.truth, batch.data, self.operator, self.weight, *norms
        )

    def on_train_batch_start(self, batch: Sample, batch_idx: int) -> None:
        if self.trainer.global_step == self.n_first_steps:
            # The decoder's optimizer knows nothing of the encoder: L-BFGS would go on along what it
            # remembers, and move the half that rests.
            for optimizer in self.trainer.optimizers:
                optimizer.state.clear()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        # [Note: the half that rests]
        resting = self.net if self.surrogate_learns else self.surrogate
        for parameter in resting.parameters():
            parameter.grad = None

    def _forward_map(self, u: Tensor) -> Tensor:
        if self.autoencoder.target == "state":
            return self.operator.state(u).flatten(1)
        return self.operator(u)

    def _surrogate_norm(self) -> SquaredNorm:
        # The norm of the data knows nothing of states: every entry counts alike.
        return _mean_square if self.autoencoder.target == "state" else self.data_norm

    def _begin_scoring(self, samples: Any) -> None:
        super()._begin_scoring(samples)
        self._forward_errors = SampleErrors(len(samples), 1).to(self.device)

    def _score(self, batch: Sample) -> None:
        super()._score(batch)
        truth = self._forward_map(batch.truth)
        error = relative_error(self.surrogate(batch.truth), truth)
        self._forward_errors.update(batch.index, error[:, None])

    def _log_scores(self, stage: str) -> None:
        super()._log_scores(stage)
        forward = self._forward_errors.compute().nanmean()
        total = forward + self.scores[:, 0].nanmean()
        errors = {f"{stage}/forward_error": forward, f"{stage}/total_error": total}
        self.log_dict(errors, sync_dist=True)


def _zero_times(module: nn.Module) -> Tensor:
    return 0.0 * sum(parameter.sum() for parameter in module.parameters())


def _mean_square(difference: Tensor) -> Tensor:
    return difference.flatten(1).square().mean(1)

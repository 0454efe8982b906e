"""Logs a bound on the generalisation error beside the gap that is measured."""

from __future__ import annotations

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from zoo.data.samples import Samples, SamplesDataModule
from zoo.errors import PhysicsError
from zoo.loss.bound import generalization_bound, greedy_covering_number
from zoo.loss.spectral_product import SpectralProduct
from zoo.model.inverse import Inverse

_QUANTILES = (0.0, 0.05, 0.25, 0.5)


class Generalization(Callback):
    """After every validation: `generalization/gap`, `generalization/bound` and what goes into it.

    The loss is ||truth - estimate||_2; the gap is its mean on `val` less that on `train`, without
    the noise of a randomisation. The Lipschitz constants are the products of spectral norms, which
    are valid for any input: `generalization/lipschitz` of the network and
    `generalization/lipschitz_composed` with the operator inside. M is the largest loss seen. The
    covering number is that of the training and validation truths, and psi the radius, out of a
    few, with the smallest bound.

    [Note: what this bound is worth] With fewer samples than cells it is larger than any loss: it
    tells how the parts move, not what error to expect.

    Args:
        n_iterations: of power iteration.
        failure_probability: zeta.
    """

    def __init__(self, n_iterations: int = 50, failure_probability: float = 0.05) -> None:
        self.n_iterations = n_iterations
        self.failure_probability = failure_probability

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        values = self.measure(pl_module, trainer.datamodule)
        # Every rank holds all samples and the same weights: equal on all ranks.
        pl_module.log_dict(
            {f"generalization/{name}": value for name, value in values.items()}, sync_dist=True
        )

    @torch.no_grad()
    def measure(self, model: Inverse, data: SamplesDataModule) -> dict[str, float]:
        """gap, bound, lipschitz and lipschitz_composed.

        Raises:
            PhysicsError: the operator is not linear, so that its products bound nothing.
        """
        if not data.operator.is_linear:
            raise PhysicsError(
                f"{type(data.operator).__name__} is not linear: expected a linear operator for "
                "the bound. Next, leave this callback out."
            )
        train, val = data.samples("train"), data.samples("val")
        losses = {s.split: _losses(model, s) for s in (train, val)}
        x = val.data[:1].to(model.device)
        lipschitz = self._product(model, x, SpectralProduct(1.0, None, self.n_iterations))
        composed = self._product(model, x, SpectralProduct(1.0, data.operator, self.n_iterations))
        truths = torch.cat([train.truth, val.truth])
        noise = (data.noise_std() * train.data[0].numel() ** 0.5) if data.noise else 0.0
        bound = min(
            generalization_bound(
                composed,
                lipschitz,
                radius,
                noise,
                float(torch.cat(list(losses.values())).max()),
                greedy_covering_number(truths, radius),
                len(train),
                self.failure_probability,
            )
            for radius in _radii(truths)
        )
        gap = float(losses["val"].mean() - losses["train"].mean())
        return {"gap": gap, "bound": bound, "lipschitz": lipschitz, "lipschitz_composed": composed}

    def _product(self, model: Inverse, x: Tensor, term: SpectralProduct) -> float:
        return float(term.to(model.device)(model.net, x))


def _losses(model: Inverse, samples: Samples) -> Tensor:
    estimates = model(samples.data.to(model.device)).cpu()
    return torch.linalg.vector_norm((estimates - samples.truth).flatten(1), dim=1)


def _radii(truths: Tensor) -> list[float]:
    """Twice the distances from the first truth, at a few quantiles, and the diameter of all."""
    points = truths.flatten(1)
    distances = torch.linalg.vector_norm(points - points[0], dim=1)[1:]
    quantiles = [float(distances.quantile(q)) for q in _QUANTILES]
    return [*quantiles, 2.0 * float(distances.max())]

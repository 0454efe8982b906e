"""From diffraction patterns to the object's projected potential, as a LightningModule."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics.functional.image import structural_similarity_index_measure

from zoo.errors import UserError
from zoo.metric.fourier_ring import fourier_ring_correlation, frc_cutoff
from zoo.metric.relative_error import norm_difference, relative_l2
from zoo.metric.sample_scores import SampleScores
from zoo.model.diffraction_input import DiffractionInput, Standardisation, moments_of
from zoo.model.scored import Scored, scheduled
from zoo.net.flop import forward_flop

COLUMNS = ("rel_l2", "rel_l2_mean_predictor", "norm_difference", "ssim", "frc_cutoff")


class DiffractionBatch(NamedTuple):
    """Whatever a data module yields has these attributes.

    Attributes:
        index: [B] integers, of the sample in its split.
        cbed: [B, scan_h * scan_w, det_h, det_w], intensities.
        potential: [B, 1, H, W].
    """

    index: Tensor
    cbed: Tensor
    potential: Tensor


class Diffraction(Scored):
    """Trains `net` to give the projected potential that a scanned beam was scattered by.

    Before training the means and standard deviations of the network's inputs, and of the potential,
    are taken from `statistics_samples` of the training set, shared out over the ranks; they are
    buffers, so they go with every checkpoint. The loss compares standardised potentials,
    the scores those in the data's own units.

    Logs `train/loss` a step; `val/` and `test/` hold the means over samples of

    - `rel_l2`: ||y - y'|| / ||y||;
    - `rel_l2_mean_predictor`: the same for the training set's mean, which sees no pattern;
    - `norm_difference`: what the authors' code calls rMSE, a difference of norms only;
    - `ssim`: Wang et al. 2004, over the truth's own range, Gaussian window of 11 pixels;
    - `frc_cutoff`: up to which share of Nyquist's frequency the Fourier ring correlation with the
      truth is a half or more.

    Args:
        net: [B, channels, h, w] of `input` -> [B, 1, H, W].
        input: raw patterns -> what `net` takes.
        optimizer: parameters -> optimizer.
        scheduler: optimizer -> learning rate schedule, advanced every step; None keeps the rate.
        loss: "l1" | "huber", of standardised potentials.
        huber_delta: where Huber's loss goes over from squares to absolute values.
        compile_net: `torch.compile` the network.

    Raises:
        ValueError: `net` takes another number of channels than `input` gives, or `loss` is unknown.
    """

    def __init__(
        self,
        net: nn.Module,
        input: DiffractionInput,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        loss: Literal["l1", "huber"] = "l1",
        huber_delta: float = 1.0,
        statistics_samples: int = 128,
        compile_net: bool = False,
    ) -> None:
        super().__init__()
        if net.in_channels != input.channels:
            raise ValueError(
                f"expected a net of {input.channels} input channels (layout {input.layout!r}), got "
                f"{net.in_channels}; set net.in_channels={input.channels}"
            )
        if loss not in ("l1", "huber"):
            raise ValueError(f"loss must be 'l1' or 'huber', got {loss!r}")
        self.net, self.input, self.output = net, input, Standardisation(1)
        self.loss, self.huber_delta = loss, huber_delta
        self.statistics_samples, self.compile_net = statistics_samples, compile_net
        self.register_buffer("has_statistics", torch.tensor(False))
        self.scores: Tensor | None = None
        self._optimizer, self._scheduler = optimizer, scheduler

    def setup(self, stage: str) -> None:
        if stage == "fit" and not self.has_statistics:
            self._take_statistics(self.trainer.datamodule.train_dataloader().dataset)
        if self.compile_net:
            self.net.compile()

    def forward(self, cbed: Tensor) -> Tensor:
        """[B, scan_h * scan_w, det_h, det_w] -> the potential [B, 1, H, W], float32."""
        return self.output.undo(self._standardised(cbed))

    def training_step(self, batch: DiffractionBatch, batch_idx: int) -> Tensor:
        image, truth = self._standardised(batch.cbed), self.output(batch.potential.float())
        if image.shape != truth.shape:
            raise UserError(
                f"the network's output does not fit the data. Expected {list(truth.shape)}, got "
                f"{list(image.shape)}. Next, set net.upscale to the ratio of the sides."
            )
        if self.loss == "l1":
            loss = F.l1_loss(image, truth)
        else:
            loss = F.huber_loss(image, truth, delta=self.huber_delta)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(truth))
        return loss

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return scheduled(self._optimizer(self.net.parameters()), self._scheduler)

    def forward_flop_per_sample(self, batch: DiffractionBatch) -> int:
        """For `zoo.callback.throughput`: of the network; the input's scaling is left out."""
        return forward_flop(
            self.net, torch.empty(1, self.input.channels, *self.input.plane_shape, device="meta")
        )

    def _standardised(self, cbed: Tensor) -> Tensor:
        dtype = next(self.net.parameters()).dtype
        return self.net(self.input(cbed).to(dtype)).float()

    def _take_statistics(self, samples: Any) -> None:
        """Set both standardisations; all ranks must call it, and all get the same."""
        n_samples = min(len(samples), self.statistics_samples)
        # Spread over the whole set, which may be sorted by material.
        stride = len(samples) / max(n_samples, 1)
        inputs = torch.zeros(3, self.input.channels, dtype=torch.float64)
        outputs = torch.zeros(3, 1, dtype=torch.float64)
        for index in range(self.trainer.global_rank, n_samples, self.trainer.world_size):
            sample = samples[int(index * stride)]
            inputs += moments_of(self.input.laid_out(sample.cbed[None]))
            outputs += moments_of(sample.potential[None])
        self.input.standardisation.set_statistics(self._summed(inputs))
        self.output.set_statistics(self._summed(outputs))
        self.has_statistics.fill_(True)

    def _summed(self, moments: Tensor) -> Tensor:
        strategy = self.trainer.strategy
        return strategy.reduce(moments.to(strategy.root_device), reduce_op="sum").cpu()

    def _begin_scoring(self, samples: Any) -> None:
        self._sample_scores = SampleScores(len(samples), len(COLUMNS)).to(self.device)

    def _score(self, batch: DiffractionBatch) -> None:
        truth = batch.potential.float()
        mean = self.output.mean.float().expand_as(truth)
        self._sample_scores.update(batch.index, scores_of(self(batch.cbed), truth, mean))

    def _log_scores(self, stage: str) -> None:
        """Log the means; keep the table, [n_samples, len(COLUMNS)], in `scores` on every rank."""
        scores = self._sample_scores.compute()
        self.scores = scores.cpu()
        # Equal on all ranks already; sync_dist only says so to Lightning.
        self.log_dict(
            {f"{stage}/{name}": mean for name, mean in summarize(scores).items()}, sync_dist=True
        )


def scores_of(image: Tensor, truth: Tensor, mean_predictor: Tensor) -> Tensor:
    """[B, 1, H, W] thrice -> [B, len(COLUMNS)]."""
    correlation = fourier_ring_correlation(image[:, 0], truth[:, 0])
    return torch.stack(
        [
            relative_l2(image, truth),
            relative_l2(mean_predictor, truth),
            norm_difference(image, truth),
            _ssim(image, truth),
            frc_cutoff(correlation),
        ],
        dim=1,
    )


def summarize(scores: Tensor) -> dict[str, Tensor]:
    """Means over the samples seen, by `COLUMNS`."""
    return dict(zip(COLUMNS, scores.nanmean(dim=0), strict=True))


def _ssim(image: Tensor, truth: Tensor) -> Tensor:
    """[B, 1, H, W] twice -> [B], each sample over its own truth's range."""
    least = truth.amin(dim=(1, 2, 3), keepdim=True)
    span = (truth.amax(dim=(1, 2, 3), keepdim=True) - least).clamp(min=1e-12)
    scaled = [(x - least) / span for x in (image, truth)]
    # torchmetrics drops the batch axis of a batch of one.
    return structural_similarity_index_measure(*scaled, data_range=1.0, reduction="none").view(-1)

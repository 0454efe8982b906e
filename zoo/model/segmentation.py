"""Masks of weather events from fields of a climate model, as a LightningModule."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from zoo.data.climate_batch import ClimateBatch
from zoo.data.climate_grid import zone_height
from zoo.errors import CheckpointError, UserError
from zoo.loss.class_weights import ClassWeighted
from zoo.metric.iou import confusion_matrices, summarize
from zoo.metric.sample_scores import SampleScores
from zoo.model.scored import Scored, scheduled
from zoo.net.flop import forward_flop

DATA_KEY = "climate_data"


class Segmentation(Scored):
    """Trains `net` to tell the class of every pixel.

    What the net was trained on comes from the data module, which normalises the fields:
    `channels`, `class_names`, `latitude_deg` [H] and `class_frequencies` (or None). It goes with
    every checkpoint, and a run is not resumed on other channels or classes.

    Logs `train/loss` a step; `val/` and `test/` hold `loss`, the mean over samples, and

    - `iou_mlperf`, `iou_mean`, `iou_macro`: the three definitions of `zoo.metric.iou`;
    - `iou_CLASS`: over all pixels of all samples, NaN for a class that is in neither mask.

    All are exact under any number of ranks, and a sample that a sampler repeats counts once.

    Args:
        net: [N, C, H, W] -> logits [N, n_classes, H, W].
        optimizer: parameters -> optimizer.
        loss: (logits, labels [N, H, W], pixel weights or None) -> scalar.
        scheduler: optimizer -> learning rate schedule, advanced every step; None keeps the rate.
        area_weighted: the loss weighs a pixel by the area that it stands for on the globe; scores
            do not.
        compile_net: `torch.compile` the network.
    """

    def __init__(
        self,
        net: nn.Module,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        loss: nn.Module,
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        area_weighted: bool = False,
        compile_net: bool = False,
    ) -> None:
        super().__init__()
        self.net, self.loss = net, loss
        self.area_weighted, self.compile_net = area_weighted, compile_net
        self.data: dict[str, Any] = {}
        self.confusion: Tensor | None = None
        self._optimizer, self._scheduler = optimizer, scheduler
        self._pixel_weights: Tensor | None = None

    def setup(self, stage: str) -> None:
        self._take_data(self.trainer.datamodule)
        self._take_frequencies()
        if self.area_weighted:
            self._pixel_weights = area_weights(self.data["latitude_deg"]).to(self.device)
        if self.compile_net:
            self.net.compile()

    def forward(self, fields: Tensor) -> Tensor:
        """[N, C, H, W] normalised fields -> logits [N, n_classes, H, W]."""
        return self.net(fields)

    def predict(self, fields: Tensor) -> Tensor:
        """[N, C, H, W] normalised fields -> [N, H, W] int64 classes."""
        return self(fields).argmax(dim=1)

    def training_step(self, batch: ClimateBatch, batch_idx: int) -> Tensor:
        loss = self._loss(self(batch.fields), batch.labels)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch.labels))
        return loss

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return scheduled(self._optimizer(self.net.parameters()), self._scheduler)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[DATA_KEY] = self.data

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raises CheckpointError if the checkpoint's channels or classes are not the data's."""
        stored = checkpoint.get(DATA_KEY, {})
        for name in ("channels", "class_names"):
            if self.data and stored and stored[name] != self.data[name]:
                raise CheckpointError(
                    f"the checkpoint was trained on other data. Expected its {name} "
                    f"{stored[name]}, got {self.data[name]}. Next, choose those in data.{name}, in "
                    "this order, or train anew."
                )
        self.data = self.data or stored

    def forward_flop_per_sample(self, batch: ClimateBatch) -> int:
        """For `zoo.callback.throughput`."""
        return forward_flop(self.net, torch.empty_like(batch.fields[:1], device="meta"))

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        weights = self._pixel_weights
        if weights is not None:
            weights = self._pixel_weights = weights.to(labels.device)
        return self.loss(logits, labels, weights)

    def _take_data(self, datamodule: L.LightningDataModule) -> None:
        frequencies = datamodule.class_frequencies
        # Plain lists: checkpoints are read with weights_only.
        self.data = {
            "channels": list(datamodule.channels),
            "class_names": list(datamodule.class_names),
            "latitude_deg": _floats(datamodule.latitude_deg),
            "class_frequencies": None if frequencies is None else _floats(frequencies),
        }
        for what, n_data, option, n_net in (
            ("channels", len(self.data["channels"]), "in_channels", self.net.in_channels),
            ("classes", len(self.data["class_names"]), "out_channels", self.net.out_channels),
        ):
            if n_data != n_net:
                raise UserError(
                    f"the network does not fit the data. Expected {n_data} {what}, got {n_net}. "
                    f"Next, set net.{option}={n_data}."
                )

    def _take_frequencies(self) -> None:
        frequencies = self.data["class_frequencies"]
        for term in self.loss.modules():
            if not isinstance(term, ClassWeighted) or not term.waits_for_frequencies:
                continue
            if frequencies is None:
                raise UserError(
                    "the loss takes its class weights from the frequencies of classes, and the "
                    "data module has none. Next, give model.loss.class_weights."
                )
            term.take_class_frequencies(frequencies)

    def _begin_scoring(self, samples: Any) -> None:
        # A row a sample: the cells of its confusion matrix (float32 counts to 2 ** 24), its loss.
        n_cells = len(self.data["class_names"]) ** 2
        self._sample_scores = SampleScores(len(samples), n_cells + 1).to(self.device)

    def _score(self, batch: ClimateBatch) -> None:
        logits = self(batch.fields)
        n_classes = logits.shape[1]
        matrices = confusion_matrices(logits.argmax(dim=1), batch.labels, n_classes)
        losses = [
            self._loss(one[None], labels[None])
            for one, labels in zip(logits, batch.labels, strict=True)
        ]
        rows = torch.cat([matrices.flatten(1).float(), torch.stack(losses)[:, None]], dim=1)
        self._sample_scores.update(batch.index, rows)

    def _log_scores(self, stage: str) -> None:
        """Log the scores; keep the matrices, [n_samples, C, C], in `confusion` on every rank."""
        table = self._sample_scores.compute().cpu()
        n_classes = len(self.data["class_names"])
        # Not all samples are seen where limit_val_batches is set.
        seen = ~table[:, 0].isnan()
        self.confusion = table[:, :-1].view(-1, n_classes, n_classes)
        scores = summarize(self.confusion[seen], tuple(self.data["class_names"]))
        scores["loss"] = table[seen, -1].mean()
        # Equal on all ranks already; sync_dist only says so to Lightning.
        self.log_dict(
            {f"{stage}/{name}": value.float() for name, value in scores.items()}, sync_dist=True
        )


def area_weights(latitude_deg: Iterable[float]) -> Tensor:
    """[H] evenly spaced -> [H, 1] float32: area of a cell in each row, 1 on average.

    Exact for rows at the poles too, whose cells end there.
    """
    area = torch.from_numpy(zone_height(np.array(list(latitude_deg), dtype=np.float64)))
    return (area / area.mean()).float()[:, None]


def _floats(values: Iterable[float]) -> list[float]:
    return [float(value) for value in values]

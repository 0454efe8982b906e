"""LightningModules for the parity of whole fits; each tells what a Trainer must do for it."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

WIDTH = 8


class Regression(pl.LightningModule):
    """Fits random targets by SGD with momentum, so that a wrong gradient keeps showing."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(WIDTH, 16)
        self.middle = nn.Linear(16, 16)
        self.decode = nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(torch.tanh(self.middle(torch.tanh(self.encode(x)))))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return F.mse_loss(self(x), y)

    def configure_optimizers(self) -> Any:
        trained = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.SGD(trained, lr=0.1, momentum=0.9)

    def train_dataloader(self) -> DataLoader[Any]:
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(48, WIDTH, generator=generator)
        return DataLoader(TensorDataset(x, x.sum(1, keepdim=True).sin()), batch_size=4)


class Normalized(Regression):
    """Batch-norm statistics follow each rank's own batches; validation shows whose are used."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(16)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(torch.tanh(self.encode(x)))
        return self.decode(torch.tanh(self.middle(hidden)))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        # Twice in one step: what DDP takes for a forward is the step.
        return F.mse_loss(self(x), y) + 0.1 * self(-x).square().mean()

    def on_train_batch_end(self, outputs: Any, batch: list[Tensor], batch_idx: int) -> None:
        if self.global_rank == 0:  # as for a picture; none of the others' business
            with torch.no_grad():
                self(batch[0])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        x, y = batch
        self.log("rank_loss", F.mse_loss(self(x), y))

    def val_dataloader(self) -> DataLoader[Any]:
        return self.train_dataloader()


class Frozen(Regression):
    def __init__(self) -> None:
        super().__init__()
        self.encode.requires_grad_(False)


class UnusedOnOneRank(Regression):
    """``middle`` is in rank 0's graph only."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.encode(x))
        return self.decode(self.middle(hidden) if self.global_rank == 0 else hidden)


class UnusedOnBoth(Regression):
    """``middle`` is in no graph; its weight must not move, not even by weight decay."""

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(torch.tanh(self.encode(x)))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, weight_decay=0.5)


class Manual(Regression):
    """Manual optimization: ``training_step`` makes the whole step."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


class TwoOptimizers(Manual):
    """In turns, as in adversarial training; one group is absent each time."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        x, y = batch
        for optimizer in self.optimizers():
            self.toggle_optimizer(optimizer)
            optimizer.zero_grad()
            self.manual_backward(F.mse_loss(self(x), y))
            self.clip_gradients(optimizer, gradient_clip_val=0.5, gradient_clip_algorithm="norm")
            optimizer.step()
            self.untoggle_optimizer(optimizer)

    def configure_optimizers(self) -> Any:
        first = [*self.encode.parameters(), *self.middle.parameters()]
        return (
            torch.optim.SGD(first, lr=0.1, momentum=0.9),
            torch.optim.Adam(self.decode.parameters(), lr=0.01),
        )


class ManualAccumulation(Manual):
    """Every second micro-batch syncs, by ``toggle_model(sync_grad=...)``."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        x, y = batch
        optimizer = self.optimizers()
        is_last = batch_idx % 2 == 1
        with optimizer.toggle_model(sync_grad=is_last):
            self.manual_backward(F.mse_loss(self(x), y))
        if is_last:
            optimizer.step()
            optimizer.zero_grad()

"""Two ranks on this machine's CPU: the two lines that change, and what they did.

python examples/quickstart.py
"""

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_gradsched  # noqa: F401  makes strategy="gradsched" known


class Classifier(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Sequential(nn.Linear(512, 512), nn.GELU()) for _ in range(6)]
        self.net = nn.Sequential(nn.Linear(64, 512), *layers, nn.Linear(512, 10))

    def training_step(self, batch, batch_idx):
        x, label = batch
        return nn.functional.cross_entropy(self.net(x), label)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def main() -> None:
    pl.seed_everything(0)
    data = TensorDataset(torch.randn(4096, 64), torch.randint(10, (4096,)))
    trainer = pl.Trainer(
        strategy="gradsched",
        accelerator="cpu",
        devices=2,
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(Classifier(), DataLoader(data, batch_size=64, shuffle=True))
    if trainer.is_global_zero:
        print(trainer.strategy.report())


if __name__ == "__main__":
    main()

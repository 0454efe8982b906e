"""Puts the run's configuration into its checkpoints."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

CONFIG_KEY = "zoo_config"


class StoreConfig(Callback):
    """A checkpoint that knows its configuration can be evaluated wherever it has been moved to."""

    def __init__(self, config_yaml: str) -> None:
        self.config_yaml = config_yaml

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint[CONFIG_KEY] = self.config_yaml

"""The patches of real photographs of which several claims are made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from zoo.data.patches import PatchesDataModule

_PATH = Path(__file__).resolve().parents[2] / "data" / "photographs.h5"


def photograph_patches(operator: nn.Module, **options: Any) -> PatchesDataModule:
    """Ready for use; the file is written first where there is none."""
    data = PatchesDataModule(operator, str(_PATH), **options)
    data.prepare_data()
    return data

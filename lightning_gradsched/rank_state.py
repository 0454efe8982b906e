"""What each rank has for itself, in the checkpoint: random generators, and the loaders' places."""

from __future__ import annotations

import io
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor


def rng_state(device: torch.device) -> dict[str, Any]:
    """The generators of Python, NumPy, torch and ``device``, as tensors and plain numbers."""
    version, words, gauss = random.getstate()
    name, keys, *rest = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": [version, torch.tensor(words), gauss],
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *map(_plain, rest)],
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_rng_state(state: dict[str, Any], device: torch.device) -> None:
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def packed(value: Any) -> Tensor:
    """``value`` as bytes, [n] uint8."""
    stream = io.BytesIO()
    torch.save(value, stream)
    return torch.frombuffer(bytearray(stream.getvalue()), dtype=torch.uint8)


def unpacked(data: Tensor) -> Any:
    """What was packed; nothing in it is run."""
    return torch.load(io.BytesIO(data.numpy().tobytes()), weights_only=True)

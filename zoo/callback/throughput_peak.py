"""What a device can do at best: measured, since no table knows its clocks and threads."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import torch
from lightning.pytorch.plugins import (
    DoublePrecision,
    HalfPrecision,
    MixedPrecision,
    Precision,
)

_BUDGET_S = 0.3
_LEAST_PRODUCTS = 3


def measure_peak_flop_per_s(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of the fastest of some products of square matrices, 2 n^3 each.

    8192 on an accelerator, 1024 on a CPU, in this process's number of threads and, for float32, in
    the precision of `torch.get_float32_matmul_precision`.
    """
    side = 1024 if device.type == "cpu" else 8192
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    seconds = _fastest_s(lambda: torch.mm(a, b, out=out), device)
    return 2.0 * side**3 / seconds


def compute_dtype(plugin: Precision) -> torch.dtype:
    """What products of matrices are computed in under this precision plugin of Lightning's."""
    if isinstance(plugin, MixedPrecision):
        return torch.bfloat16 if plugin.precision == "bf16-mixed" else torch.float16
    if isinstance(plugin, HalfPrecision):
        return torch.bfloat16 if plugin.precision == "bf16-true" else torch.float16
    return torch.float64 if isinstance(plugin, DoublePrecision) else torch.float32


def _fastest_s(product: Callable[[], object], device: torch.device) -> float:
    """Of as many as fit the budget, after one that is not counted."""
    _timed_s(product, device)
    times: list[float] = []
    while len(times) < _LEAST_PRODUCTS or sum(times) < _BUDGET_S:
        times.append(_timed_s(product, device))
    return min(times)


def _timed_s(product: Callable[[], object], device: torch.device) -> float:
    _synchronize(device)
    start_s = perf_counter()
    product()
    _synchronize(device)
    return perf_counter() - start_s


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

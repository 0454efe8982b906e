"""Nets of any size on any machine: layers that sleep as long as a device would compute.

A layer's backward sleeps, then yields gradients of its parameters' true sizes, all ones. So the
engine and its rivals see what they see on a device (hooks, sizes, order, time), while the cores of
this machine are free to move the bytes. As on a device that the host feeds ahead, a layer's compute
follows the one before it without a gap: what the host does in between costs time only where it is
slower than the device. (What hooks cost a host is measured by ``benchmarks.overhead``.)
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from time import perf_counter, sleep
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

PR_SET_TIMERSLACK = 29


class Layer(NamedTuple):
    """Parameters that get their gradients together; ``flop`` is its share of the compute."""

    numels: tuple[int, ...]
    flop: float


def sleep_precisely() -> None:
    """Have this process woken within a microsecond of its time instead of fifty."""
    ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)


class EmulatedLayer(nn.Module):
    """``forward`` takes and returns a float tensor of any shape and leaves it as it is."""

    def __init__(self, layer: Layer, dtype: torch.dtype) -> None:
        super().__init__()
        for number, numel in enumerate(layer.numels):
            self.register_parameter(
                f"weight{number}", nn.Parameter(torch.zeros(numel, dtype=dtype))
            )
        self.gradients = tuple(torch.ones(n, dtype=dtype) for n in layer.numels)
        self.forward_s = self.backward_s = 0.0

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = _Sleep.apply(
            x, self.forward_s, self.backward_s, self.gradients, *self.parameters()
        )
        return result


class _Sleep(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, forward_s: float, backward_s: float, gradients: Any, *weights: Tensor
    ) -> Tensor:
        _DEVICE.compute(forward_s)
        ctx.backward_s, ctx.gradients = backward_s, gradients
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        _DEVICE.compute(ctx.backward_s)
        return grad_outputs[0], None, None, None, *ctx.gradients


class _Device:
    """Computes one thing after the other, on the clock of ``perf_counter``."""

    def __init__(self) -> None:
        self._free_s = 0.0

    def begin(self) -> None:
        """It has nothing to do before now."""
        self._free_s = perf_counter()

    def compute(self, seconds: float) -> None:
        """Return when it is done."""
        self._free_s = max(self._free_s + seconds, perf_counter())
        while (left_s := self._free_s - perf_counter()) > 0:
            sleep(left_s)

    def waited(self) -> None:
        """What it computes next could not begin before now: it has waited for the network."""
        self._free_s = max(self._free_s, perf_counter())


_DEVICE = _Device()


def device_waited() -> None:
    """In the midst of a forward, the device of this process has waited for the network."""
    _DEVICE.waited()


class EmulatedNet(nn.Sequential):
    """``layers`` in forward order."""

    def __init__(self, layers: Sequence[Layer], dtype: torch.dtype) -> None:
        super().__init__(*(EmulatedLayer(layer, dtype) for layer in layers))
        self._flops = [layer.flop for layer in layers]

    def forward(self, x: Tensor) -> Tensor:
        _DEVICE.begin()
        result: Tensor = super().forward(x)
        return result

    def set_compute(self, compute_s: float) -> None:
        """Give forward a third and backward two thirds of it, each layer by its FLOP."""
        total = sum(self._flops)
        for layer, flop in zip(self, self._flops, strict=True):
            assert isinstance(layer, EmulatedLayer)
            layer.forward_s = compute_s / 3 * flop / total
            layer.backward_s = compute_s * 2 / 3 * flop / total

    def share_memory_of(self, other: EmulatedNet) -> None:
        """Hold the parameters and ready-made gradients of ``other``: rivals need one copy."""
        for mine, theirs in zip(self, other, strict=True):
            assert isinstance(mine, EmulatedLayer)
            assert isinstance(theirs, EmulatedLayer)
            mine.gradients = theirs.gradients
            for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
                a.data = b.data

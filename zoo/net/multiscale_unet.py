"""The U-net of the theory of unknown inverse problems: scales, short filters in each, synthesis.

del Alamo 2021, arXiv 2108.02744 (Electronic Journal of Statistics 17, 2023): the down path is a
multiscale analysis, the skip connections carry short convolutions scale by scale, the up path is
the synthesis.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Daubechies' orthonormal low-pass filters by number of vanishing moments (Ten Lectures on Wavelets,
# 1992, table 6.1).
_LOW_PASS = {
    1: (0.7071067811865476, 0.7071067811865476),
    2: (0.48296291314453416, 0.8365163037378079, 0.22414386804201339, -0.12940952255126037),
    4: (
        0.23037781330889653,
        0.7148465705529157,
        0.6308807679298589,
        -0.027983769416859854,
        -0.18703481171909309,
        0.030841381835560764,
        0.0328830116668852,
        -0.010597401785069032,
    ),
}


def wavelet_filters(moments: int) -> Tensor:
    """[2, 1, length]: Daubechies' low-pass filter and its quadrature mirror.

    Raises:
        ValueError: `moments` is not one of those that are here.
    """
    if moments not in _LOW_PASS:
        raise ValueError(f"moments must be one of {sorted(_LOW_PASS)}, got {moments}; try 4")
    low = torch.tensor(_LOW_PASS[moments])
    signs = torch.tensor([1.0, -1.0]).repeat(len(low) // 2)
    return torch.stack([low, signs * low.flip(0)])[:, None]


class MultiscaleUNet(nn.Module):
    """[N, *] * dims sides of 2^levels multiples -> the same shape; periodic.

    Each level splits its input by the filter bank into the next coarser one and details (one
    channel in one dimension, three in two); the details see the input through a short convolution,
    at the resolution of the level; the synthesis puts all together again. The convolutions start
    as the identity, and so does the net, since its wavelets are orthonormal.

    [Note: filter before the split] After the split a frequency and its mirror image are one: no
    filter there could treat them apart, and the error would be that of aliasing. Filtered before,
    the details are those against vaguelettes, T^-1 of the wavelets (Donoho 1995,
    doi 10.1006/acha.1995.1008), as the theory has it.

    Args:
        levels: number of scales.
        taps: width of the filters, odd.
        dims: 1 or 2.
        moments: vanishing moments of the wavelets, 1 (Haar), 2 or 4.
        learned: train the filter banks of the analysis and of the synthesis too.
        channels: 0 for linear filters; else each filter has a hidden layer of so many channels
            with ReLU beside it.

    Raises:
        ValueError: `taps` is even, `dims` is not 1 or 2, or the wavelet is not known.
    """

    def __init__(
        self,
        levels: int = 6,
        taps: int = 5,
        dims: int = 1,
        moments: int = 4,
        learned: bool = False,
        channels: int = 0,
    ) -> None:
        super().__init__()
        if taps % 2 == 0 or dims not in (1, 2):
            raise ValueError(f"expected odd taps and dims of 1 or 2, got taps={taps}, dims={dims}")
        bank = wavelet_filters(moments)
        if dims == 2:
            bank = torch.einsum("ai,bj->abij", bank[:, 0], bank[:, 0]).flatten(0, 1)[:, None]
        self.levels = levels
        self.dims = dims
        self.analysis = _filters(bank, levels, learned)
        self.synthesis = _filters(bank, levels, learned)
        details = len(bank) - 1
        self.filters = nn.ModuleList(
            ScaleFilter(details, taps, dims, channels) for _ in range(levels)
        )
        self.coarsest = ScaleFilter(1, taps, dims, channels)

    def forward(self, signal: Tensor) -> Tensor:
        coarse, details = signal.unsqueeze(1), []
        for level in range(self.levels):
            bank = self.analysis[level]
            details.append(self._analysed(self.filters[level](coarse), bank[1:]))
            coarse = self._analysed(coarse, bank[:1])
        coarse = self.coarsest(coarse)
        for level in reversed(range(self.levels)):
            parts = torch.cat([coarse, details[level]], dim=1)
            coarse = self._synthesized(parts, self.synthesis[level])
        return coarse.squeeze(1)

    def _analysed(self, signal: Tensor, bank: Tensor) -> Tensor:
        convolve = F.conv1d if self.dims == 1 else F.conv2d
        sides = signal.shape[2:]
        if any(side % 2 for side in sides):
            raise ValueError(
                f"a side of {list(sides)} cannot be halved. Expected multiples of 2^levels with "
                f"levels={self.levels}; next, set net.levels to less."
            )
        padded = _wrapped(signal, 0, bank.shape[-1] - 1)
        return convolve(padded, bank, stride=2, groups=len(bank))

    def _synthesized(self, parts: Tensor, bank: Tensor) -> Tensor:
        transposed = F.conv_transpose1d if self.dims == 1 else F.conv_transpose2d
        sides = [2 * side for side in parts.shape[2:]]
        return _folded(transposed(parts, bank, stride=2), sides)


class ScaleFilter(nn.Module):
    """A periodic convolution [N, 1, ...] -> [N, c, ...] that starts as c copies of its input."""

    def __init__(self, out_channels: int, taps: int, dims: int, hidden: int) -> None:
        super().__init__()
        conv = nn.Conv1d if dims == 1 else nn.Conv2d
        options = {"padding": taps // 2, "padding_mode": "circular"}
        self.linear = conv(1, out_channels, taps, bias=False, **options)
        nn.init.zeros_(self.linear.weight)
        self.linear.weight.data[(slice(None), 0, *(taps // 2,) * dims)] = 1.0
        self.hidden = None
        if hidden:
            last = conv(hidden, out_channels, taps, bias=False, **options)
            nn.init.zeros_(last.weight)
            self.hidden = nn.Sequential(conv(1, hidden, taps, **options), nn.ReLU(), last)

    def forward(self, x: Tensor) -> Tensor:
        taps = self.linear.kernel_size[0]
        # A grid smaller than the filter is repeated until the filter fits: it is periodic.
        if min(x.shape[2:]) < taps:
            return _on_a_small_grid(self._filtered, x, taps)
        return self._filtered(x)

    def _filtered(self, x: Tensor) -> Tensor:
        return self.linear(x) if self.hidden is None else self.linear(x) + self.hidden(x)


def _on_a_small_grid(apply: Callable[[Tensor], Tensor], x: Tensor, taps: int) -> Tensor:
    sides = x.shape[2:]
    repeats = [-(-taps // side) for side in sides]
    out = apply(x.repeat(1, 1, *repeats))
    return out[(..., *(slice(side) for side in sides))]


def _filters(bank: Tensor, levels: int, learned: bool) -> nn.ParameterList:
    return nn.ParameterList(
        nn.Parameter(bank.clone(), requires_grad=learned) for _ in range(levels)
    )


def _wrapped(x: Tensor, before: int, after: int) -> Tensor:
    """x with so many periodic continuations at each side; more than a period where needed."""
    for dim in range(2, x.ndim):
        places = torch.arange(-before, x.shape[dim] + after, device=x.device) % x.shape[dim]
        x = x.index_select(dim, places)
    return x


def _folded(x: Tensor, sides: list[int]) -> Tensor:
    """The adjoint of `_wrapped`: what lies beyond a period is added to where it belongs."""
    for dim, side in enumerate(sides, start=2):
        places = torch.arange(x.shape[dim], device=x.device) % side
        shape = [*x.shape[:dim], side, *x.shape[dim + 1 :]]
        x = x.new_zeros(shape).index_add(dim, places, x)
    return x

"""What the convolutional nets share: the check of their input, and their first weights."""

from __future__ import annotations

from torch import Tensor, nn


def require_plane(x: Tensor, in_channels: int, divisor: int, remedy: str) -> None:
    """Raise unless x is [N, in_channels, h, w] with h and w multiples of `divisor`.

    Args:
        remedy: what to change in the configuration, besides padding the plane.

    Raises:
        ValueError: it is not.
    """
    if x.shape[1] != in_channels or x.shape[2] % divisor or x.shape[3] % divisor:
        raise ValueError(
            f"expected [N, {in_channels}, h, w] with h and w multiples of {divisor}, got "
            f"{list(x.shape)}; pad the plane, or set {remedy}"
        )


def initialize_he(module: nn.Module) -> None:
    """For `net.apply`. He et al. 2015, arXiv 1502.01852, equation 10: by the inputs of a layer."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    if isinstance(module, nn.ConvTranspose2d):
        # Each output pixel sees about kernel^2 / stride^2 of the kernel: at least one of its taps.
        taps = max(1.0, module.kernel_size[0] ** 2 / 4)
        nn.init.normal_(module.weight, std=(1.0 / (module.in_channels * taps)) ** 0.5)
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)) and module.bias is not None:
        nn.init.zeros_(module.bias)

"""Spectral norms of linear maps and of layers, by power iteration that keeps its vector."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

LinearMap = Callable[[Tensor], Tensor]


class PowerIteration(nn.Module):
    """The largest singular value of a linear map that changes slowly from call to call.

    The vector is a buffer, kept between calls, so that one iteration a training step is enough
    (Miyato et al. 2018, arXiv 1802.05957, section 2.1). It starts from a seed of its own and sees
    nothing but the map: ranks that hold the same weights hold the same vector, without
    communication. The result is differentiable in what the map is made of, not in the vector.

    Args:
        n_iterations: a call.
        n_first: at the first call, and whenever the shape has changed.
        seed: of the first vector.
    """

    vector: Tensor

    def __init__(self, n_iterations: int = 1, n_first: int = 30, seed: int = 0) -> None:
        super().__init__()
        self.n_iterations = n_iterations
        self.n_first = n_first
        self.seed = seed
        self.register_buffer("vector", torch.empty(0))

    def forward(self, linear: LinearMap, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """The norm of `linear`, a scalar.

        Args:
            linear: [1, *shape] -> [1, ...].
            like: a tensor of the precision and device to compute in.
        """
        fresh = tuple(self.vector.shape) != shape
        if fresh:
            generator = torch.Generator().manual_seed(self.seed)
            self.vector = torch.randn(shape, generator=generator).to(like)
        with torch.no_grad():
            vector = self.vector.to(like)
            for _ in range(self.n_first if fresh else self.n_iterations):
                vector = _iterated(linear, vector)
            self.vector.copy_(vector)
        return torch.linalg.vector_norm(linear(vector[None]))

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *args: Any) -> None:
        if prefix + "vector" in state:
            self.vector = torch.empty_like(state[prefix + "vector"])
        super()._load_from_state_dict(state, prefix, *args)


def _iterated(linear: LinearMap, vector: Tensor) -> Tensor:
    image, pull = torch.func.vjp(linear, vector[None])
    (back,) = pull(image)
    # A zero map has no direction; the small number keeps its vector finite.
    return back[0] / torch.linalg.vector_norm(back).clamp_min(torch.finfo(back.dtype).tiny)


LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def layer_map(layer: nn.Module) -> LinearMap:
    """The linear part of a dense or convolutional layer, with its stride and padding."""
    if isinstance(layer, nn.Linear):
        return lambda x: nn.functional.linear(x, layer.weight)
    return lambda x: layer._conv_forward(x, layer.weight, None)


def weighted_layers(net: nn.Module) -> dict[str, nn.Module]:
    """Qualified name -> dense or convolutional layer of `net`, in the order of registration.

    Raises:
        ValueError: there are none.
    """
    layers = {name: layer for name, layer in net.named_modules() if isinstance(layer, LAYERS)}
    if not layers:
        raise ValueError(
            f"{type(net).__name__} has no dense or convolutional layer to take a norm of. Expected "
            "at least one; next, name the network by callbacks.regularize.module=NAME"
        )
    return layers


@torch.no_grad()
def input_shapes(net: nn.Module, x: Tensor) -> dict[str, tuple[int, ...]]:
    """Qualified name -> shape of the input, without batch dimension, in the order of execution.

    Runs `net(x[:1])` once. A layer that is called twice is there once, with its last input.
    """
    shapes: dict[str, tuple[int, ...]] = {}

    def record(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            shapes[name] = tuple(inputs[0].shape[1:])

        return hook

    layers = weighted_layers(net).items()
    handles = [layer.register_forward_pre_hook(record(name)) for name, layer in layers]
    try:
        net(x[:1])
    finally:
        for handle in handles:
            handle.remove()
    return shapes

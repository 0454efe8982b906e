"""The product of the layers' spectral norms: a cheap bound on a network's Lipschitz constant."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.errors import PhysicsError
from zoo.loss.power_iteration import (
    LinearMap,
    PowerIteration,
    input_shapes,
    layer_map,
    weighted_layers,
)
from zoo.physics.operator import Operator


class SpectralProduct(nn.Module):
    """weight * prod_l ||W_l||_2, or with an operator A weight * ||W_1 A||_2 prod_{l>1} ||W_l||_2.

    Amjad, Lyu and Rodrigues (arXiv 1901.11352, IEEE TSP 69, 2021) regularise by bounds on the
    Jacobian of the network and of its composition with the forward operator. For a chain of layers
    with 1-Lipschitz activations the products bound ||J_f||_2 and ||J_{f o A}||_2; with skip
    connections they are no bound, but still a penalty. A convolution's norm is that of the
    operator on its actual input, not of its reshaped kernel.

    Args:
        weight: lambda.
        operator: A, linear, whose data are the network's input; None for the first form.
        n_iterations: of power iteration a call; see `PowerIteration`.

    Raises:
        PhysicsError: the operator is not linear, or its data do not fit the first layer.
    """

    weight: Tensor

    def __init__(
        self, weight: float, operator: Operator | None = None, n_iterations: int = 1
    ) -> None:
        super().__init__()
        if operator is not None and not operator.is_linear:
            raise PhysicsError(
                f"{type(operator).__name__} is not linear: expected a linear operator for "
                "||W_1 A||. Next, take the Jacobian (loss=jacobian), or leave the operator out."
            )
        self.register_buffer("weight", torch.tensor(float(weight)), persistent=False)
        self.operator = operator
        self.n_iterations = n_iterations
        self.iterations = nn.ModuleDict()
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._shapes_of: tuple[int, ...] | None = None

    def bind(self, net: nn.Module) -> None:
        """Make room for a vector a layer; before a checkpoint is loaded into this term."""
        for seed, name in enumerate(weighted_layers(net)):
            self.iterations[_key(name)] = PowerIteration(self.n_iterations, seed=seed)

    def forward(self, net: nn.Module, x: Tensor) -> Tensor:
        return self.weight * torch.stack(self.norms(net, x)).prod()

    def norms(self, net: nn.Module, x: Tensor) -> list[Tensor]:
        """The norm of each layer in the order of execution; the first one's is ||W_1 A||."""
        if not self.iterations:
            self.bind(net)
        layers = weighted_layers(net)
        return [
            self.iterations[_key(name)](self._map(layers[name], shape, is_first), *like)
            for is_first, name, shape, like in self._plan(layers, net, x)
        ]

    def _plan(self, layers: dict[str, nn.Module], net: nn.Module, x: Tensor) -> list:
        if self._shapes_of != tuple(x.shape[1:]):
            self._shapes, self._shapes_of = input_shapes(net, x), tuple(x.shape[1:])
        plan = []
        for place, (name, shape) in enumerate(self._shapes.items()):
            is_first = place == 0 and self.operator is not None
            domain = self.operator.domain.shape if is_first else shape
            plan.append((is_first, name, shape, (domain, layers[name].weight)))
        return plan

    def _map(self, layer: nn.Module, shape: tuple[int, ...], is_first: bool) -> LinearMap:
        linear = layer_map(layer)
        if not is_first:
            return linear
        operator = self.operator
        if operator.codomain.shape != shape:
            raise PhysicsError(
                f"{type(operator).__name__} does not feed the network: expected data "
                f"{list(shape)}, the input of its first layer, got "
                f"{list(operator.codomain.shape)}. Next, name the operator that makes the "
                "network's input, or leave it out."
            )
        return lambda v: linear(operator(v))


def _key(name: str) -> str:
    # A dot means a submodule in names of nn.Module.
    return name.replace(".", "/") or "self"

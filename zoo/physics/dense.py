"""A small linear operator as its matrix."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from zoo.errors import PhysicsError
from zoo.physics.operator import Operator, Space


class Dense(nn.Module):
    """The matrix of a real linear operator, for nets that want vectors and for `torch.func`.

    Args:
        operator: A; its columns are computed once, in double precision.
        flat: vectors in and out, [N, n] -> [N, m]; else the operator's own shapes.

    Raises:
        PhysicsError: the operator is not linear, or complex.
    """

    is_linear = True

    def __init__(self, operator: Operator, flat: bool = False) -> None:
        super().__init__()
        if not operator.is_linear or operator.domain.is_complex or operator.codomain.is_complex:
            raise PhysicsError(
                f"{type(operator).__name__} has no real matrix. Expected a real linear operator; "
                "next, use it as it is."
            )
        n, m = (math.prod(space.shape) for space in (operator.domain, operator.codomain))
        basis = torch.eye(n, dtype=torch.float64).view(n, *operator.domain.shape)
        matrix = operator(basis).flatten(1).T.contiguous()
        self.register_buffer("matrix", matrix, persistent=False)
        self.domain = Space((n,)) if flat else operator.domain
        self.codomain = Space((m,)) if flat else operator.codomain

    def forward(self, x: Tensor) -> Tensor:
        self.domain.require("x", x)
        image = x.flatten(1) @ self.matrix.to(x.dtype).T
        return image.unflatten(1, self.codomain.shape)

    def adjoint(self, y: Tensor) -> Tensor:
        self.codomain.require("y", y)
        return (y.flatten(1) @ self.matrix.to(y.dtype)).unflatten(1, self.domain.shape)

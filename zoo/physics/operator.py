"""Forward operators A: what each offers, and what autograd then gives for all.

An operator maps a batch x [N, *domain.shape] to A(x) [N, *codomain.shape]; it keeps the precision
of x, and its own tensors follow `nn.Module.to`. The inner product of both spaces is
Re sum(conj(u) v), for which a vector-Jacobian product is the adjoint of the Jacobian, of complex
numbers too.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from zoo.errors import PhysicsError


class Space(NamedTuple):
    """The arrays of one sample: their shape, without the batch dimension, real or complex."""

    shape: tuple[int, ...]
    is_complex: bool = False

    def require(self, name: str, batch: Tensor) -> None:
        """Raise PhysicsError unless `batch` is [N, *shape], and real or complex as it should be."""
        if tuple(batch.shape[1:]) != self.shape or batch.is_complex() != self.is_complex:
            kind = "complex" if self.is_complex else "real"
            raise PhysicsError(
                f"{name} does not fit the operator. Expected a {kind} tensor "
                f"{['N', *self.shape]}; got {batch.dtype} {list(batch.shape)}. Next, reshape it, "
                "or build the operator for its shape."
            )

    def random(
        self, n: int, dtype: torch.dtype = torch.float32, seed: int = 0, device: str = "cpu"
    ) -> Tensor:
        """[n, *shape] of independent standard normal numbers; `dtype` is that of the real part."""
        generator = torch.Generator().manual_seed(seed)
        kind = dtype.to_complex() if self.is_complex else dtype
        return torch.randn(n, *self.shape, dtype=kind, generator=generator).to(device)


class Operator(Protocol):
    """A forward operator.

    One with a closed-form adjoint has a method `adjoint` too: y [N, *codomain.shape] ->
    [N, *domain.shape]. Without one, `adjoint` below takes autograd's.
    """

    domain: Space
    codomain: Space
    is_linear: bool

    def __call__(self, x: Tensor) -> Tensor:
        """A(x); raises PhysicsError if x is not of `domain`."""
        ...


def inner(u: Tensor, v: Tensor) -> Tensor:
    """Re sum(conj(u) v) over everything but the batch dimension, [N]."""
    products = (u.conj() * v).real if u.is_complex() else u * v
    return products.flatten(1).sum(1)


def vjp(operator: Operator, x: Tensor, y: Tensor) -> Tensor:
    """J(x)* y, the adjoint of the Jacobian at x; differentiable in x and y."""
    return torch.func.vjp(operator, x)[1](y)[0]


def jvp(operator: Operator, x: Tensor, v: Tensor) -> Tensor:
    """J(x) v, the derivative of A at x along v: the adjoint of `vjp`, which is linear in y."""
    if operator.is_linear:
        return operator(v)
    zeros = _zeros(operator.codomain, like=x)
    return torch.func.vjp(lambda y: vjp(operator, x, y), zeros)[1](v)[0]


def adjoint(operator: Operator, y: Tensor) -> Tensor:
    """A* y of a linear operator, [N, *domain.shape]; differentiable in y.

    Raises:
        PhysicsError: the operator is not linear, so that its adjoint depends on where it is taken.
    """
    if not operator.is_linear:
        raise PhysicsError(
            f"{type(operator).__name__} is not linear: expected a linear operator for its adjoint. "
            "Next, take `vjp(operator, x, y)`, the adjoint of its Jacobian at x."
        )
    if hasattr(operator, "adjoint"):
        return operator.adjoint(y)
    operator.codomain.require("y", y)
    return vjp(operator, _zeros(operator.domain, like=y), y)


def norm(
    operator: Operator,
    at: Tensor | None = None,
    n_iterations: int = 50,
    seed: int = 0,
    device: str = "cpu",
) -> float:
    """The largest singular value of A, or of its Jacobian at `at` [1, *domain.shape].

    Power iteration on J* J from a random start: a lower bound that rises with `n_iterations`.
    `device` is the operator's, where `at` is not given.

    Raises:
        PhysicsError: the operator is not linear and `at` is not given.
    """
    if at is None and not operator.is_linear:
        raise PhysicsError(
            f"{type(operator).__name__} is not linear: expected a point `at` where its Jacobian's "
            "norm is wanted, got None. Next, pass at=x."
        )
    like = torch.float32 if at is None else at.abs().dtype
    v = operator.domain.random(1, like, seed, device if at is None else str(at.device))
    squared = 0.0
    for _ in range(n_iterations):
        v = v / v.norm()
        y = jvp(operator, v if at is None else at, v)
        v = adjoint(operator, y) if at is None else vjp(operator, at, y)
        squared = float(v.norm())
        if squared == 0.0:
            break
    return math.sqrt(squared)


def _zeros(space: Space, like: Tensor) -> Tensor:
    real = like.real.dtype if like.is_complex() else like.dtype
    dtype = real.to_complex() if space.is_complex else real
    return torch.zeros(len(like), *space.shape, dtype=dtype, device=like.device)

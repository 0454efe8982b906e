"""Norms of a network's Jacobian on its inputs, alone or composed with the forward operator.

Amjad, Lyu and Rodrigues: arXiv 1901.11352, and with the operator inside IEEE TSP 69, 2021.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from zoo.loss.power_iteration import LinearMap
from zoo.physics import operator as physics
from zoo.physics.operator import Operator


class Jacobian(nn.Module):
    """weight * mean over samples of ||J_f(y)||^2, or with an operator of ||J_f(y) J_F||^2.

    "frobenius" by Hutchinson's estimator, E_v ||v^T J||^2 with v ~ N(0, I): one vector-Jacobian
    product. "spectral" by power iteration (a Jacobian-vector and a vector-Jacobian product each).
    J_F of a nonlinear F is taken at the network's own estimate f(y).

    [Note: vectors of each rank] Ranks hold other samples, and so other Jacobians: the probes and
    the start of the power iteration are each rank's own, by design. The start is one vector for
    all samples, the mean of the last call's results, kept in a buffer; a checkpoint has rank 0's.

    The network must be free of batch statistics: samples are differentiated side by side.

    Args:
        weight: lambda.
        kind: "frobenius" or "spectral".
        operator: F, whose data are the network's input; None for the network's Jacobian alone.
        n_iterations: of the power iteration a call.

    Raises:
        ValueError: `kind` is not known.
    """

    weight: Tensor
    vector: Tensor

    def __init__(
        self,
        weight: float,
        kind: Literal["frobenius", "spectral"] = "spectral",
        operator: Operator | None = None,
        n_iterations: int = 1,
    ) -> None:
        super().__init__()
        if kind not in ("frobenius", "spectral"):
            raise ValueError(f"kind must be 'frobenius' or 'spectral', got {kind!r}")
        self.register_buffer("weight", torch.tensor(float(weight)), persistent=False)
        self.register_buffer("vector", torch.empty(0))
        self.kind = kind
        self.operator = operator
        self.n_iterations = n_iterations

    def bind(self, net: nn.Module) -> None:
        """The start vector gets its shape from the first batch."""

    def forward(self, net: nn.Module, y: Tensor) -> Tensor:
        squared = self._frobenius(net, y) if self.kind == "frobenius" else self._spectral(net, y)
        return self.weight * squared.mean()

    def spectral_norms(self, net: nn.Module, y: Tensor, n_iterations: int = 30) -> Tensor:
        """||J_f(y) J_F||_2 of each sample, [N], by power iteration from random starts."""
        pushed = self._linearized(net, y)
        v = _unit(torch.randn(len(y), *self._direction_shape(y), dtype=y.dtype, device=y.device))
        return _norms(pushed(_power_iterated(pushed, v, n_iterations)))

    def _frobenius(self, net: nn.Module, y: Tensor) -> Tensor:
        estimate, pull = torch.func.vjp(net, y)
        (row,) = pull(torch.randn_like(estimate))
        if self.operator is None:
            return _norms(row).square()
        if self.operator.is_linear:
            return _norms(physics.adjoint(self.operator, row)).square()
        return _norms(physics.vjp(self.operator, estimate.detach(), row)).square()

    def _spectral(self, net: nn.Module, y: Tensor) -> Tensor:
        pushed = self._linearized(net, y)
        shape = self._direction_shape(y)
        if tuple(self.vector.shape) != shape:
            self.vector = torch.randn(shape, dtype=y.dtype, device=y.device)
        with torch.no_grad():
            v = _unit(self.vector.to(y).expand(len(y), *shape))
            v = _power_iterated(pushed, v, self.n_iterations)
            self.vector.copy_(_mean_direction(v))
        return _norms(pushed(v)).square()

    def _direction_shape(self, y: Tensor) -> tuple[int, ...]:
        return tuple(y.shape[1:]) if self.operator is None else self.operator.domain.shape

    def _linearized(self, net: nn.Module, y: Tensor) -> LinearMap:
        """v [N, ...] -> J_f(y) J_F v, a row a sample."""
        operator = self.operator
        if operator is None:
            return lambda v: torch.func.jvp(net, (y,), (v,))[1]
        if operator.is_linear:
            return lambda v: torch.func.jvp(net, (y,), (operator(v),))[1]
        at = net(y).detach()
        return lambda v: torch.func.jvp(net, (y,), (physics.jvp(operator, at, v),))[1]

    def _load_from_state_dict(self, state: dict, prefix: str, *args: object) -> None:
        if prefix + "vector" in state:
            self.vector = torch.empty_like(state[prefix + "vector"])
        super()._load_from_state_dict(state, prefix, *args)


def _power_iterated(pushed: LinearMap, v: Tensor, n_iterations: int) -> Tensor:
    for _ in range(n_iterations):
        image, pull = torch.func.vjp(pushed, v)
        v = _unit(pull(image)[0])
    return v


def _norms(batch: Tensor) -> Tensor:
    return torch.linalg.vector_norm(batch.flatten(1), dim=1)


def _unit(batch: Tensor) -> Tensor:
    norms = _norms(batch).clamp_min(torch.finfo(batch.dtype).tiny)
    return batch / norms.view(-1, *[1] * (batch.ndim - 1))


def _mean_direction(v: Tensor) -> Tensor:
    """The unit vector along the mean of v [N, ...], each turned to the side of the first."""
    signs = torch.where((v.flatten(1) @ v[0].flatten()) < 0, -1.0, 1.0).to(v)
    return _unit((v * signs.view(-1, *[1] * (v.ndim - 1))).mean(0, keepdim=True))[0]

"""Trains many small networks at once: seeds and weights of a sweep, stacked along a new dimension.

A step of one small network is mostly overhead; a stack of them shares it. The members are the very
modules that a LightningModule would train, and each sees its own data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn

from zoo.errors import NonFiniteError


class Objective(nn.Module):
    """The loss of `zoo.model.inverse.Inverse` with a term of `zoo.loss`, as a module of its own."""

    def __init__(self, net: nn.Module, term: nn.Module | None = None) -> None:
        super().__init__()
        self.net = net
        self.term = term

    def forward(self, truth: Tensor, data: Tensor) -> Tensor:
        loss = 0.5 * (self.net(data) - truth).flatten(1).square().sum(1).mean()
        return loss if self.term is None else loss + self.term(self.net, data)


class Ensemble:
    """Members of one architecture whose parameters and buffers are stacked, [n_members, ...].

    Buffers that the members change in place, such as vectors of power iterations, are kept. Random
    numbers differ between members.

    Args:
        objectives: modules of equal structure, (truth [N, ...], data [N, ...]) -> loss.
    """

    def __init__(self, objectives: Sequence[nn.Module]) -> None:
        self.parameters, self.buffers = torch.func.stack_module_state(list(objectives))
        self._skeleton = deepcopy(objectives[0])

    def train(
        self,
        truth: Tensor,
        data: Tensor,
        n_steps: int,
        lr: float = 1e-3,
        progress: Callable[[], None] | None = None,
    ) -> Tensor:
        """`n_steps` of Adam on each member's own whole batch; the last losses, [n_members].

        Args:
            truth, data: [n_members, N, ...].
            progress: called after every step.

        Raises:
            NonFiniteError: a member's loss is NaN or infinite at the end.
        """
        optimizer = torch.optim.Adam(self.parameters.values(), lr=lr)
        losses = torch.zeros(len(truth))
        for _ in range(n_steps):
            losses = self._map(self._skeleton)(truth, data)
            optimizer.zero_grad()
            # The members share nothing: the gradient of the sum is each member's own.
            losses.sum().backward()
            optimizer.step()
            if progress is not None:
                progress()
        return _finite(losses.detach())

    @torch.no_grad()
    def estimate(self, data: Tensor) -> Tensor:
        """Each member's network at its data [n_members, N, ...], [n_members, N, ...]."""
        return self._map(self._skeleton, lambda objective, y: objective.net(y))(data)

    def _map(
        self, skeleton: nn.Module, call: Callable[..., Tensor] | None = None
    ) -> Callable[..., Tensor]:
        caller = _Caller(skeleton, call)

        def one(parameters: dict[str, Tensor], buffers: dict[str, Tensor], *args: Tensor) -> Tensor:
            tensors = {f"objective.{name}": t for name, t in (parameters | buffers).items()}
            return torch.func.functional_call(caller, tensors, args)

        mapped = torch.func.vmap(one, randomness="different")
        return lambda *args: mapped(self.parameters, self.buffers, *args)


class _Caller(nn.Module):
    """Lets `functional_call`, which calls a module's forward, call what is wanted."""

    def __init__(self, objective: nn.Module, call: Callable[..., Tensor] | None) -> None:
        super().__init__()
        self.objective = objective
        self.call = call

    def forward(self, *args: Tensor) -> Tensor:
        return self.objective(*args) if self.call is None else self.call(self.objective, *args)


def _finite(losses: Tensor) -> Tensor:
    bad = (~losses.isfinite()).nonzero().flatten().tolist()
    if bad:
        raise NonFiniteError(
            f"the losses of members {bad} ended as {losses[bad].tolist()}. Expected finite "
            "numbers; next, lower the learning rate or the weight of their regularisation."
        )
    return losses

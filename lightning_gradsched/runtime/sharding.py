"""Optimizers of which each rank keeps the state of its own part, and updates that alone.

[Note: shards] The first stage of ZeRO (Rajbhandari et al., SC20, arXiv 1910.02054), parameter by
parameter: each has one rank that owns it, whose step updates it and keeps its state, and which then
sends it to the others. Gradients are reduced as ever and every rank holds all of them, so clipping
and loss scaling see what they always do, and updates are the same, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_gradsched.core.shards import owners
from lightning_gradsched.errors import GradSchedError
from lightning_gradsched.runtime.collectives import Collectives
from lightning_gradsched.runtime.gathered_weights import GatheredWeights, Named
from lightning_gradsched.runtime.step_in_part import Passed, StepInPart

# Groups of parameters, in the order in which the next forward uses them.
Groups = Callable[[], Sequence[Sequence[Named]]]


class ShardedOptimizer(StepInPart):
    """Has ``optimizer.step()`` update this rank's part, and send it.

    From then on ``step()`` is collective. ``optimizer.consolidate_state_dict()``, as of torch's
    ``ZeroRedundancyOptimizer``, must be called on all ranks before ``optimizer.state_dict()``,
    which on rank 0 is complete then.

    Raises:
        GradSchedError: ``optimizer`` is not known to update each parameter by itself.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        weights: GatheredWeights,
        groups: Groups,
        collectives: Collectives,
        trusted: Collection[str],
    ) -> None:
        super().__init__(optimizer, self._pass_over_others, trusted, "shard_optimizer")
        self._weights = weights
        self._groups = groups
        self._collectives = collectives
        self._owner: dict[Tensor, int] = {}
        self._loads_nbytes = [0] * collectives.world_size
        self._whole: dict[int, dict[str, Any]] | None = None  # states of all, on rank 0
        self._assign(optimizer)
        self._keep_own(optimizer)
        hooks: Any = optimizer
        hooks.consolidate_state_dict = self.consolidate
        self._send_handle = optimizer.register_step_post_hook(self._send)
        self._handles += [
            self._send_handle,
            optimizer.register_state_dict_pre_hook(self._before_state),
            optimizer.register_state_dict_post_hook(self._complete_state),
            optimizer.register_load_state_dict_post_hook(self._keep_own),
        ]

    def detach(self) -> None:
        super().detach()
        optimizer = self._optimizer()
        if optimizer is not None:
            vars(optimizer).pop("consolidate_state_dict", None)

    def consolidate(self, to: int = 0) -> None:
        """Have the next ``state_dict()`` on rank ``to`` hold every rank's states. Collective."""
        optimizer = self._optimizer()
        assert optimizer is not None
        own = {i: optimizer.state[p] for i, p in self._own(optimizer) if p in optimizer.state}
        tables = self._collectives.gather(
            [
                (i, name, *_described(value))
                for i, state in own.items()
                for name, value in state.items()
            ],
            "the states of the optimizer's parts",
        )
        whole: dict[int, dict[str, Any]] = {}
        for rank, table in enumerate(tables):
            for i, name, shape, value in table:
                if shape is not None:
                    param = _params(optimizer)[i]
                    value = self._fetch(own.get(i, {}).get(name), shape, value, param, rank)
                if self._collectives.rank == to:
                    whole.setdefault(i, {})[name] = value
        self._whole = whole

    def _fetch(
        self, own: Tensor | None, shape: Sequence[int], dtype: torch.dtype, param: Tensor, rank: int
    ) -> Tensor:
        """A tensor of a state, out of ``rank``; where there is ``own``, that."""
        tensor = torch.empty(shape, dtype=dtype, device=param.device) if own is None else own
        dense = tensor.contiguous()
        work = self._collectives.begin_broadcast(dense, rank)
        self._collectives.watchdog.wait(work, f"the optimizer's state on rank {rank}")
        return tensor if own is not None else dense

    def _assign(self, optimizer: Optimizer) -> None:
        """Give each parameter that is new an owner; alike on all ranks."""
        new = [param for param in _params(optimizer) if param not in self._owner]
        nbytes = [param.nbytes for param in new]
        for param, size, rank in zip(new, nbytes, owners(nbytes, self._loads_nbytes), strict=True):
            self._owner[param] = rank
            self._loads_nbytes[rank] += size

    def _own(self, optimizer: Optimizer) -> Iterator[tuple[int, Tensor]]:
        """This rank's parameters, by their numbers in ``state_dict()``."""
        for i, param in enumerate(_params(optimizer)):
            if self._owner[param] == self._collectives.rank:
                yield i, param

    def _keep_own(self, optimizer: Optimizer) -> None:
        """Forget what a checkpoint has brought for the others."""
        for param in _params(optimizer):
            if self._owner[param] != self._collectives.rank:
                optimizer.state.pop(param, None)

    def _pass_over_others(self, optimizer: Optimizer) -> Passed:
        self._assign(optimizer)
        # After all hooks on the step, which may change the weights too, those that came later too.
        hooks: Any = optimizer._optimizer_step_post_hooks
        hooks.move_to_end(self._send_handle.id)
        passed = [(group, group["params"]) for group in optimizer.param_groups]
        for group, params in passed:
            group["params"] = [p for p in params if self._owner[p] == self._collectives.rank]
        return passed

    def _send(self, *_: Any) -> None:
        groups = [[pair for pair in group if pair[1] in self._owner] for group in self._groups()]
        self._weights.send([group for group in groups if group], self._owner.__getitem__)

    def _before_state(self, _optimizer: Optimizer) -> None:
        if self._whole is None:
            raise GradSchedError(
                f"shard_optimizer: rank {self._collectives.global_rank} has the state of its own"
                " part alone: call optimizer.consolidate_state_dict() on all ranks first, then"
                " state_dict() on rank 0"
            )

    def _complete_state(self, _optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        whole, self._whole = self._whole, None
        # In the order of the parameters, as without shards.
        return {**state, "state": dict(sorted(whole.items())) if whole else state["state"]}


def _params(optimizer: Optimizer) -> list[Tensor]:
    return [param for group in optimizer.param_groups for param in group["params"]]


def _described(value: Any) -> tuple[list[int] | None, Any]:
    """Shape and dtype of a tensor; of what is small, nothing and the value itself."""
    if isinstance(value, Tensor) and value.ndim:
        return list(value.shape), value.dtype
    return None, value.cpu() if isinstance(value, Tensor) else value

"""Which parameters are reduced: those that require gradients, or have done so once.

[Note: unfreezing] A rank sees for itself that a parameter which was frozen trains now, and signals
it (see runtime/signals.py) with the last group of the backward in which it got its first gradient.
So all ranks know at the end of that backward, whether they have seen it or not: they compare what
each has unfrozen, and reduce it, or all raise. No rank begins a collective by itself.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from lightning_gradsched.errors import GradSchedError
from lightning_gradsched.runtime import consensus
from lightning_gradsched.runtime.collectives import Collectives
from lightning_gradsched.runtime.sparse import sparse_parameters


class Trainable:
    """The parameters of ``module`` that are reduced. Collective, as all ranks must make it alike.

    Nothing is ever dropped: ``toggle_optimizer`` switches requires_grad off and on around a step. A
    parameter that one rank alone has frozen is one that this rank does not use.

    Raises:
        ConsensusError: on every rank, if their modules differ in a parameter or buffer.
        GradSchedError: the module has no parameters.
    """

    def __init__(self, module: nn.Module, collectives: Collectives) -> None:
        self._module = module
        self._collectives = collectives
        self.sparse = sparse_parameters(module)
        self.params: dict[str, Tensor] = {}
        self._frozen: list[Tensor] = []
        named = dict(module.named_parameters())
        found = self._unfrozen()
        consensus.check_parameters(collectives, found)
        rest = {name: tensor for name, tensor in named.items() if name not in found}
        consensus.check_state(collectives, {**rest, **dict(module.named_buffers())})
        if not named:
            raise GradSchedError(f"{type(module).__name__} has no parameters to train")
        self._take(found)

    @property
    def can_grow(self) -> bool:
        """Whether something is frozen."""
        return bool(self._frozen)

    @property
    def has_grown(self) -> bool:
        """Whether something that was frozen trains now, on this rank. Local."""
        return any(param.requires_grad for param in self._frozen)

    def grow(self) -> Mapping[str, Tensor]:
        """Take in what has been unfrozen since, and return it. Collective.

        Raises:
            ConsensusError: on every rank, unless all have unfrozen the same.
        """
        found = self._unfrozen()
        consensus.check_unfrozen(self._collectives, found)
        self._take(found)
        return found

    def _unfrozen(self) -> dict[str, Tensor]:
        named = self._module.named_parameters()
        return {n: p for n, p in named if p.requires_grad and n not in self.params}

    def _take(self, found: Mapping[str, Tensor]) -> None:
        self.params.update(found)
        named = self._module.named_parameters()
        self._frozen = [param for name, param in named if name not in self.params]

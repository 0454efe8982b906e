"""Weights on their way from the ranks that have updated them, until the next forward uses them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gradsched.naming import some_of
from lightning_gradsched.runtime.collectives import Collectives, Work
from lightning_gradsched.runtime.compiler_watch import CompilerWatch
from lightning_gradsched.runtime.lazy import DueParameter, complete, make_lazy, settle
from lightning_gradsched.runtime.module_hook import hook_owners
from lightning_gradsched.runtime.undisturbed import undisturbed

Named = tuple[str, Tensor]  # a parameter


@dataclass(eq=False, slots=True)
class _Message:
    """The weights of some parameters of one group, from the rank that has updated them."""

    members: Sequence[Named]
    flat: Tensor
    source: int  # as numbered in the whole job
    work: Work = field(init=False)

    def __str__(self) -> str:
        names = some_of([name for name, _ in self.members])
        return f"the weights that rank {self.source} has updated ({names})"


class GatheredWeights:
    """Sends each rank's weights to the others; who looks at one that is under way waits for it.

    See [Note: looking] in runtime/lazy.py: modules wait before they run, everybody else unawares.
    """

    def __init__(self, module: nn.Module, collectives: Collectives) -> None:
        self._collectives = collectives
        self._open: dict[_Message, None] = {}
        self._sent: list[_Message] = []  # of this rank; kept until waited for, see Bucket.work
        self._compiles = CompilerWatch(
            self.flush, "shard_optimizer", "every step waits for all weights"
        )
        self.has_failed = False  # a wait: what is open can come no more
        self._handles = hook_owners(module, self._about_to_run)

    @property
    def n_open(self) -> int:
        """Messages that have not been waited for, on this rank."""
        return len(self._open)

    @property
    def has_in_flight(self) -> bool:
        return bool(self._open or self._sent)

    def send(self, groups: Sequence[Sequence[Named]], owner: Callable[[Tensor], int]) -> None:
        """Begin to copy each parameter from its ``owner``, in this order. Collective.

        The parameters of a group are of one dtype and device.
        """
        self.flush()
        for group in groups:
            for rank in sorted({owner(param) for _, param in group}):
                self._send([pair for pair in group if owner(pair[1]) == rank], rank)
        if self._compiles.has_begun:  # what a compiled graph reads it asks nobody for
            self.flush()

    @torch.no_grad()
    def _send(self, members: Sequence[Named], rank: int) -> None:
        params = [param for _, param in members]
        if rank == self._collectives.rank:
            flat = torch.cat([param.reshape(-1) for param in params])
        else:
            flat = params[0].new_empty(sum(param.numel() for param in params))
        message = _Message(members, flat, self._collectives.ranks[rank])
        message.work = self._collectives.begin_broadcast(flat, rank)
        if rank == self._collectives.rank:
            self._sent.append(message)
            return
        self._open[message] = None
        if all(type(param) is nn.Parameter for param in params):
            make_lazy(params, DueParameter, partial(self._complete, message))
        else:  # a class of somebody's: it cannot tell who looks
            self._complete(message)

    def flush(self) -> None:
        """Wait for all."""
        for message in list(self._open):
            self._complete(message)
        for message in self._sent:
            self._wait(message)
        self._sent = []

    def detach(self) -> None:
        """Let go of all without waiting: what was under way is lost."""
        for message in self._open:
            settle(param for _, param in message.members)
        self._open, self._sent = {}, []
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._compiles.detach()

    def _about_to_run(self, owner: nn.Module, _inputs: Any) -> None:
        if self._open:
            for param in owner._parameters.values():
                complete(param)

    def _complete(self, message: _Message) -> None:
        if message not in self._open:  # in the midst of it
            return
        self._wait(message)
        del self._open[message]
        params = [param for _, param in message.members]
        settle(params)
        with undisturbed(message.flat.device):
            pieces = message.flat.split([param.numel() for param in params])
            pairs = zip(pieces, params, strict=True)
            torch._foreach_copy_(params, [piece.view(param.shape) for piece, param in pairs])

    def _wait(self, message: _Message) -> None:
        self.has_failed = True
        self._collectives.watchdog.wait(message.work, message)
        self.has_failed = False

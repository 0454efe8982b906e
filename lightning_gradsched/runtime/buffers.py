"""Rank 0's buffers for all ranks before a forward, where DDP would send them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from lightning_gradsched.errors import ReductionError
from lightning_gradsched.runtime.collectives import Collectives
from lightning_gradsched.runtime.module_hook import WeakHook


class BufferSync:
    """All ranks must run the same forwards in training mode.

    As DDP's ``forward_sync_buffers``: before a forward, unless the one before it left nothing to
    reduce (``no_sync``, ``no_grad``). A forward in eval mode sends nothing, where DDP's would: it
    may run on some ranks alone.

    ``reduces``: whether a backward of what runs now will be reduced. ``settle``: ends what a
    backward that raised has left under way, which ranks may have left at different groups.
    ``own``: what sends them, and goes with this; ``collectives`` where None.
    """

    def __init__(
        self,
        module: nn.Module,
        collectives: Collectives,
        reduces: Callable[[], bool],
        settle: Callable[[], None],
        *,
        own: Collectives | None = None,
    ) -> None:
        self._module = module
        self._own = own
        self._collectives = own or collectives
        self._reduces = reduces
        self._settle = settle
        self._is_due = True
        self._depth = 0  # of forwards within forwards: the outermost counts
        self._handles: list[RemovableHandle] = []

    def attach(self) -> None:
        """Take each call of the module for a forward."""
        self._handles = [
            self._module.register_forward_pre_hook(WeakHook(self._enter)),
            self._module.register_forward_hook(WeakHook(self._leave), always_call=True),
        ]

    def detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        if self._own is not None:
            self._own.close()

    @contextmanager
    def forward(self) -> Iterator[None]:
        """What runs within it is one forward, whatever it calls of the module."""
        try:
            self._enter()
            yield
        finally:
            self._leave()

    def sync(self) -> None:
        """Copy rank 0's buffers to all ranks now. Collective.

        Raises:
            ReductionError: the ranks did not meet within ``stall_timeout_s``.
        """
        self._settle()
        # As DDP does: autograd may have saved a buffer, and shall not take it for changed.
        buffers = [buffer.data for buffer in self._module.buffers()]
        try:
            self._collectives.broadcast_coalesced(buffers)
        except RuntimeError as error:
            raise ReductionError(
                f"the broadcast of {len(buffers)} buffers before a forward did not finish:"
                f" {str(error).rstrip('.')}."
                " Another rank has failed, is slower than stall_timeout_s, or runs other forwards"
                " in training mode; if so, set broadcast_buffers=False."
            ) from error

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _enter(self, *_: Any) -> None:
        self._depth += 1
        if self._depth == 1 and self._is_due and self._module.training:
            self.sync()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _leave(self, *_: Any) -> None:
        # A forward that a hook of the user's has stopped was never entered.
        self._depth = max(0, self._depth - 1)
        if self._depth == 0 and self._module.training:
            self._is_due = torch.is_grad_enabled() and self._reduces()

"""Meets the roots of the backwards to come: what the module's forward returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import Node

from lightning_gradsched.runtime.module_hook import WeakHook, tensors_in

# The roots of a graph, and whether its backward is certain to leave gradients.
Begin = Callable[[Sequence[Node], bool], None]


class RootWatch:
    """Has the backward of the module's outputs call ``begin`` as its first act.

    ``needs_roots``: whether the graph is looked at, as a plan will be made from it.
    """

    def __init__(self, module: nn.Module, begin: Begin, needs_roots: Callable[[], bool]) -> None:
        self._begin = begin
        self._needs_roots = needs_roots
        self._roots: list[Node] = []  # of the last forward, until a plan is made from them
        self._handle = module.register_forward_hook(WeakHook(self._on_forward))

    def detach(self) -> None:
        self._handle.remove()

    def watch(self, outputs: Sequence[Tensor], *, certain: bool) -> None:
        """``outputs`` may be differentiated; ``certain``: will be, so as to leave gradients."""
        if self._needs_roots():
            # Kept here and not by the hook, which hangs on the graph: no cycle may hold a graph.
            self._roots = [t.grad_fn for t in outputs if t.grad_fn is not None]

        def on_root(_grad: Tensor) -> None:
            self._begin(self._roots, certain)
            self._roots = []

        for tensor in outputs:
            if tensor.grad_fn is not None:
                tensor.register_hook(on_root)

    def _on_forward(self, _module: nn.Module, _inputs: Any, output: Any) -> None:
        roots = [tensor for tensor in tensors_in(output) if tensor.grad_fn is not None]
        if roots:
            self.watch(roots, certain=False)

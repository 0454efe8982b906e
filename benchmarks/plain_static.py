"""What a static schedule costs with nothing to make it safe: the yardstick of the engine's safety.

The same groups as gradsched's, by the same kind of hooks. But no rank learns that another one did
not use a parameter, died, or planned otherwise; nothing is recorded; a second gradient of a
parameter, a nested backward or an exception breaks it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Variable


class PlainStatic:
    """Leaves the mean over ranks in ``.grad`` of the parameters in ``groups``, after backward.

    ``groups``: qualified names in launch order. Every parameter must get one gradient a backward.
    """

    def __init__(self, net: nn.Module, groups: Sequence[Sequence[str]]) -> None:
        params = dict(net.named_parameters())
        self._groups = [_Group([params[name] for name in names]) for names in groups]
        self._n_launched = 0
        for group in self._groups:
            for param in group.params:
                param.register_post_accumulate_grad_hook(self._hook(group))

    def _hook(self, group: _Group) -> Callable[[Tensor], None]:
        def on_ready(_param: Tensor) -> None:
            if not self._is_running:
                self._is_running = True
                Variable._execution_engine.queue_callback(self._finish)
            group.pending -= 1
            if group.pending == 0:
                self._launch_full()

        return on_ready

    _is_running = False

    def _launch_full(self) -> None:
        for group in self._groups[self._n_launched :]:
            if group.pending > 0:
                return
            group.launch()
            self._n_launched += 1

    def _finish(self) -> None:
        for group in self._groups:
            group.finish()
        self._n_launched, self._is_running = 0, False


class _Group:
    def __init__(self, params: Sequence[Tensor]) -> None:
        self.params = params
        self.pending = len(params)
        self._flat = torch.zeros(sum(p.numel() for p in params))
        pieces = self._flat.split([p.numel() for p in params])
        self._views = [piece.view(p.shape) for piece, p in zip(pieces, params, strict=True)]
        self._wait: Callable[[], object] = lambda: None

    @torch.no_grad()
    def launch(self) -> None:
        torch._foreach_copy_(self._views, [p.grad for p in self.params if p.grad is not None])
        for param, view in zip(self.params, self._views, strict=True):
            param.grad = view
        self._flat.div_(dist.get_world_size())
        work = dist.all_reduce(self._flat, async_op=True)
        assert work is not None
        self._wait = partial(work.wait)

    def finish(self) -> None:
        self._wait()
        self.pending = len(self.params)

"""Groups that a backward has left under way, until the next forward needs them.

[Note: left open] At the end of a backward the gradients of an open group are open too: whoever
looks at one waits for the group first (see [Note: looking]). An optimizer that is known to this
engine does not look: its step passes over them, and their parameters are *due*: updated later, by
the optimizer's own code with the hyperparameters of the step that they belong to, when a module
that owns one is about to run, when anyone else looks at one, or at ``flush``, at the latest when
the next backward begins. An optimizer that is not known looks, and so waits. Either way every value
that is read is the one that it would have been had the step waited for all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import compress, repeat
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_gradsched.runtime.bucket import Bucket
from lightning_gradsched.runtime.collectives import Work
from lightning_gradsched.runtime.compiler_watch import CompilerWatch
from lightning_gradsched.runtime.inquiry import Inquiry
from lightning_gradsched.runtime.lazy import DueParameter, complete, make_lazy, settle
from lightning_gradsched.runtime.module_hook import hook_owners
from lightning_gradsched.runtime.norm_watch import NormWatch
from lightning_gradsched.runtime.recorder import Recorder
from lightning_gradsched.runtime.undisturbed import undisturbed


@dataclass(eq=False, slots=True)
class DueUpdate:
    """What one optimizer has still to do for one group: ``param_groups`` as in its step."""

    optimizer: Optimizer
    param_groups: list[dict[str, Any]]

    def params(self) -> Iterator[Tensor]:
        return (param for group in self.param_groups for param in group["params"])


@dataclass(eq=False, slots=True)
class _OpenGroup:
    bucket: Bucket
    recorder: Recorder | None
    due: list[DueUpdate] = field(default_factory=list)


class OpenGroups:
    """The groups that are open on this rank, in the order in which the next forward needs them.

    ``wait`` is as in ``Launches``. Nothing here is collective: all has been launched before.
    """

    def __init__(self, module: nn.Module, wait: Callable[[Work, Bucket], object]) -> None:
        self.inquiry: Inquiry | None = None  # where groups travel in halves
        self.norms: NormWatch | None = None  # where it is to be found out whether they shall
        self._wait = wait
        self._open: dict[Bucket, _OpenGroup] = {}
        self._has_failed = False  # a wait, whose error went to whoever looked
        self._recorder: Recorder | None = None  # of the step that left something open last
        self._compiles = CompilerWatch(
            self.flush,
            "overlap_forward",
            "every backward waits for its reductions, as with overlap_forward=False",
        )
        self._handles = hook_owners(module, self._about_to_run)

    def __len__(self) -> int:
        return len(self._open)

    def __bool__(self) -> bool:
        return bool(self._open)

    def takes(self, bucket: Bucket) -> bool:
        """Whether it can be left open on this rank: who looks must find each of its gradients."""
        return not (bucket.lacks_members or self._compiles.has_begun) and all(
            type(slot.param) is nn.Parameter and not slot.is_sparse for slot in bucket.slots
        )

    def leave(self, bucket: Bucket, recorder: Recorder | None) -> None:
        """``bucket`` has been launched, and its backward is about to end."""
        self._open[bucket] = _OpenGroup(bucket, recorder)
        if recorder is not None:
            recorder.left_open()
            self._recorder = recorder
        bucket.open_views(partial(self._complete, bucket))

    def holds(self, bucket: object) -> bool:
        return bucket in self._open

    def backward_begins(self) -> None:
        """Buckets are needed again: nothing may be open any more."""
        self.flush()
        if self._recorder is not None:
            self._recorder.next_backward_began()
            self._recorder = None

    def flush(self) -> None:
        """Wait for every group, and make every update that is due."""
        for bucket in list(self._open):
            self._complete(bucket)
        if self.inquiry is not None:
            self.inquiry.settle()
        if self.norms is not None:
            self.norms.settle()

    @property
    def has_failed(self) -> bool:
        """Whether the last wait was broken off: what is open can come no more."""
        return self._has_failed

    def abandon(self) -> None:
        """Let go of all without waiting, as after a reduction that failed: updates are lost."""
        for group in self._open.values():
            self._settle(group)
        self._open.clear()

    def detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._compiles.detach()

    def pass_over(self, optimizer: Optimizer) -> list[tuple[dict[str, Any], list[Tensor]]]:
        """Take the open parameters out of ``optimizer``'s groups, and note that they are due.

        Returns each parameter group that lacks some now, and its former ``params``.
        """
        if self.norms is not None:
            self.norms.step_begins(optimizer)
        if getattr(optimizer, "found_inf", None) is not None:
            self.flush()  # GradScaler lends it that, and the scale, for the time of this step
        # By id: torch hashes a tensor in Python, and there are thousands.
        bucket_of: dict[int, Bucket] = {}
        for bucket, params in self._undecided():
            bucket_of.update(zip(map(id, params), repeat(bucket)))
        passed = []
        updates: dict[Bucket, DueUpdate] = {}
        for group in optimizer.param_groups if bucket_of else ():
            before = group["params"]
            kept, late = _divide(before, bucket_of)
            if not late:
                continue
            settings = _as_they_are(group)
            for bucket, members in late.items():
                update = updates.setdefault(bucket, DueUpdate(optimizer, []))
                update.param_groups.append({**settings, "params": members})
            passed.append((group, before))
            group["params"] = kept
        for bucket, update in updates.items():
            self._open[bucket].due.append(update)
            make_lazy(update.params(), DueParameter, partial(self._complete, bucket))
        return passed

    def _undecided(self) -> Iterator[tuple[Bucket, Iterable[Tensor]]]:
        """Parameters whose ``.grad`` is open, and that no optimizer has stepped over yet."""
        for bucket, group in self._open.items():
            params = compress(bucket.params, bucket.grads_are_views())
            noted = set(map(id, _due(group)))
            yield bucket, [p for p in params if id(p) not in noted] if noted else params

    def _about_to_run(self, owner: nn.Module, _inputs: Any) -> None:
        if self._open:
            for param in owner._parameters.values():
                complete(param)

    def _complete(self, bucket: Bucket) -> None:
        group = self._open.get(bucket)
        if group is None:  # in the midst of it
            return
        assert bucket.work is not None
        self._has_failed = True
        with group.recorder.waiting() if group.recorder is not None else nullcontext():
            self._wait(bucket.work, bucket)
        self._has_failed = False
        # Not before: if the wait fails, so must the next look.
        del self._open[bucket]
        self._settle(group)
        with undisturbed(bucket.flat.device):
            bucket.receive()
            for update in group.due:
                _make(update, bucket)

    def _settle(self, group: _OpenGroup) -> None:
        settle(group.bucket.views)
        settle(_due(group))


def _due(group: _OpenGroup) -> Iterator[Tensor]:
    return (param for update in group.due for param in update.params())


def _divide(
    params: Sequence[Tensor], bucket_of: Mapping[int, Bucket]
) -> tuple[list[Tensor], dict[Bucket, list[Tensor]]]:
    """Those of ``params`` that are in no bucket, and those that are, by bucket."""
    kept: list[Tensor] = []
    late: dict[Bucket, list[Tensor]] = {}
    for param, bucket in zip(params, map(bucket_of.get, map(id, params)), strict=True):
        if bucket is None:
            kept.append(param)
        else:
            late.setdefault(bucket, []).append(param)
    return kept, late


def _as_they_are(group: dict[str, Any]) -> dict[str, Any]:
    """The hyperparameters of a parameter group, which schedulers change between steps."""
    return {
        name: value.clone() if isinstance(value, Tensor) else value
        for name, value in group.items()
        if name != "params"
    }


def _make(update: DueUpdate, bucket: Bucket) -> None:
    """The optimizer's own step, of these parameters alone; what hooks on it run has run before."""
    view_of = dict(zip(map(id, bucket.params), bucket.views, strict=True))
    # None where they have been zeroed since the step.
    moved = [(p, p.grad) for p in update.params() if p.grad is not view_of[id(p)]]
    optimizer, groups = update.optimizer, update.optimizer.param_groups
    optimizer.param_groups = update.param_groups
    try:
        for param, _ in moved:
            param.grad = view_of[id(param)]
        _bare_step(optimizer)
    finally:
        optimizer.param_groups = groups
        for param, grad in moved:
            param.grad = grad


def _bare_step(optimizer: Optimizer) -> None:
    """``optimizer.step()`` without the hooks that torch has put around it, and its schedulers'."""
    step = type(optimizer).step
    bare = step.__wrapped__ if getattr(step, "hooked", False) else step  # type: ignore[attr-defined]
    bare(optimizer)

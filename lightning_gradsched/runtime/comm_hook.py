"""DDP's communication hooks, unchanged, in place of the engine's own all-reduce.

[Note: one hook at a time] A hook may issue further collectives when its first has ended (PowerSGD,
quantization), on gloo from a thread of the backend's. With two hooks under way the order of those
would be chance, and another on each rank; and both threads of gloo's could wait for what only a
third can bring. So a hook starts when the one before it has finished, as the next bucket is sent
or waited for. On NCCL futures are complete when their kernels are queued: nothing is put off there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from threading import Event
from typing import Any

import torch
from torch import Tensor
from torch.futures import Future

from lightning_gradsched.config import GradSchedConfig
from lightning_gradsched.core.plan import GroupPlan
from lightning_gradsched.errors import GradSchedError, ReductionError
from lightning_gradsched.runtime.bucket import Bucket
from lightning_gradsched.runtime.collectives import AllReduce, Work

CommHook = Callable[[Any, Any], Future[Tensor]]


class GradBucket:
    """A bucket as hooks know it: the interface of ``torch.distributed.GradBucket``.

    The gradients are not divided by the number of ranks, as in DDP: that is the hook's to do.
    """

    def __init__(
        self, index: int, buffer: Tensor, parameters: Sequence[Tensor], *, is_last: bool
    ) -> None:
        self._index = index
        self._buffer = buffer
        self._parameters = list(parameters)
        self._is_last = is_last

    def index(self) -> int:
        """The same number for the same parameters, from 0 in launch order; a new plan's groups get
        new numbers, so that no hook meets what it memorized of others."""
        return self._index

    def buffer(self) -> Tensor:
        """All gradients, flattened into one dimension; a sparse gradient as it is."""
        return self._buffer

    def set_buffer(self, buffer: Tensor) -> None:
        """Replace what ``buffer()`` and ``gradients()`` return from now on."""
        self._buffer = buffer

    def gradients(self) -> list[Tensor]:
        """The buffer cut into the parameters' shapes, in the order of ``parameters()``."""
        if self._buffer.is_sparse:
            return [self._buffer]
        sizes = [param.numel() for param in self._parameters]
        pieces = self._buffer[: sum(sizes)].split(sizes)
        return [p.view(param.shape) for p, param in zip(pieces, self._parameters, strict=True)]

    def parameters(self) -> list[Tensor]:
        return self._parameters

    def is_last(self) -> bool:
        """Whether no other bucket follows in this backward."""
        return self._is_last


def check_registration(
    hook: CommHook, transport: object, config: GradSchedConfig, plan: GroupPlan | None
) -> None:
    """Raise ``GradSchedError`` where ``hook`` cannot take the place of ``transport`` any more."""
    if isinstance(transport, HookTransport):
        raise GradSchedError(
            f"expected one communication hook, got {hook_name(hook)!r} after"
            f" {transport.name!r}: make one that calls both"
        )
    if plan is not None:
        raise GradSchedError(
            "expected register_comm_hook() before the first backward, got it after one: call it"
            " right after GradientScheduler(...)"
        )
    if config.overlap_forward:
        raise GradSchedError(
            f"expected overlap_forward=False with a communication hook, got True and"
            f" {hook_name(hook)!r}"
        )
    if config.gradient_lag:
        raise GradSchedError(
            f"expected gradient_lag=0 with a communication hook, got {config.gradient_lag} and"
            f" {hook_name(hook)!r}"
        )
    if config.reduce_dtype is not None:
        raise GradSchedError(
            f"expected reduce_dtype or a communication hook, got {config.reduce_dtype!r}"
            f" and {hook_name(hook)!r}; wrap the hook in torch's fp16_compress_wrapper or"
            " bf16_compress_wrapper instead"
        )


class HookTransport:
    """Gives each bucket to ``hook(state, bucket)``; the future that it returns brings the mean.

    ``timeout_s`` bounds the wait for each future. ``missing``: in words, which ranks do not answer;
    asked where a hook's own collective has failed.
    """

    counts_apart = True  # a hook may take norms of the buffer, resize it, or send part of it

    def __init__(
        self,
        network: AllReduce,
        state: Any,
        hook: CommHook,
        timeout_s: float,
        missing: Callable[[], str],
    ) -> None:
        self.name = hook_name(hook)
        self._network = network
        self._hook = partial(hook, state)
        self._timeout_s = timeout_s
        self._missing = missing
        self._index_of: dict[tuple[str, ...], int] = {}
        self._waiting: deque[HookWork] = deque()
        self._running: HookWork | None = None

    def send(self, bucket: Bucket, *, is_last: bool, piece: int = 0) -> HookWork:
        names = tuple(slot.name for slot in bucket.slots)
        index = self._index_of.setdefault(names, len(self._index_of))
        # An alias: a hook may resize it.
        buffer = bucket.flat if bucket.flat.is_sparse else bucket.flat.view(-1)
        seen = GradBucket(index, buffer, [s.param for s in bucket.slots], is_last=is_last)
        work = HookWork(self, bucket, partial(self._start, bucket, seen))
        self._waiting.append(work)
        self._advance()
        return work

    def _start(self, bucket: Bucket, seen: GradBucket) -> tuple[Work, Future[Any]]:
        """Issue the counts, then whatever the hook does; the future holds the hook's result."""
        counts = self._network.all_reduce(bucket.tail)
        with torch.no_grad():
            future = self._hook(seen)
        if not isinstance(future, torch._C.Future):  # the base of Python's
            raise TypeError(f"expected a torch.futures.Future, got {future!r}")
        return counts, future

    def finish(self, work: HookWork) -> None:
        """Wait until ``work`` has ended, and before it all that were sent before it.

        Raises:
            ReductionError: a hook has failed.
            RuntimeError: a future is not complete after ``timeout_s``. Whoever waits here can find
                out which rank is missing: see ``Watchdog.wait``.
        """
        while not work.is_completed():
            self._advance()
            if self._running is None:
                raise ReductionError(f"{work.name} was not sent: an earlier hook has failed")
            try:
                self._running.wait_for_result(self._timeout_s)
            except Exception as error:
                failed = f"communication hook {self.name!r} failed on {self._running.name}: "
                self._running = None
                # Their collectives could meet others of ranks where no hook has failed.
                self._waiting.clear()
                if isinstance(error, TimeoutError):
                    raise RuntimeError(failed + str(error)) from error
                # What torch.distributed raises is one; so may be what the user's code raises.
                missing = self._missing() if isinstance(error, RuntimeError) else ""
                raise ReductionError(
                    f"{failed}{type(error).__name__}: {error} {missing}".rstrip()
                ) from error

    def _advance(self) -> None:
        """See [Note: one hook at a time]."""
        while self._waiting and (self._running is None or self._running.is_completed()):
            self._running = self._waiting.popleft()
            self._running.start()


class HookWork:
    """The handle of one bucket in a hook's care."""

    def __init__(
        self,
        transport: HookTransport,
        bucket: Bucket,
        start: Callable[[], tuple[Work, Future[Any]]],
    ) -> None:
        self.name = str(bucket)
        self._transport = transport
        # Both let go of when they have served: the bucket holds on to its last work.
        self._bucket: Bucket | None = bucket
        self._start: Callable[[], tuple[Work, Future[Any]]] | None = start
        self._counts: Work | None = None
        self._future: Future[Any] | None = None
        self._error: Exception | None = None
        self._ended = Event()
        self._done: Future[None] = torch.futures.Future()

    def is_completed(self) -> bool:
        """Whether the result has come, and is one."""
        return self._ended.is_set() and self._error is None

    def start(self) -> None:
        assert self._start is not None
        try:
            self._counts, self._future = self._start()
        except Exception as error:  # the user's code; told where the bucket is waited for
            self._error = error
            self._ended.set()
        else:
            self._future.add_done_callback(self._on_end)
        self._start = None

    def wait(self) -> None:
        """Raises as ``HookTransport.finish``, also for a hook that was sent before this one."""
        self._transport.finish(self)
        assert self._future is not None
        assert self._counts is not None
        self._future.wait()  # on a GPU: what follows on this stream comes after the result
        self._counts.wait()

    def get_future(self) -> Future[None]:
        return self._done

    def wait_for_result(self, timeout_s: float) -> None:
        """Raises what the hook raised; ``TimeoutError`` if its future does not complete."""
        if not self._ended.wait(timeout_s):
            raise TimeoutError(f"its future was not complete after {timeout_s:g} s")
        if self._error is not None:
            raise self._error

    def _on_end(self, future: Future[Any]) -> None:
        """Runs on a thread of the backend's."""
        try:
            assert self._bucket is not None
            _take(future.value(), self._bucket)
        except Exception as error:
            self._error = error
        self._bucket = None
        self._ended.set()
        if self._error is None:
            self._done.set_result(None)


def _take(result: Any, bucket: Bucket) -> None:
    """Note a hook's result in its bucket, unless it is there already."""
    flat = bucket.flat
    if not isinstance(result, Tensor):
        raise TypeError(
            f"expected its future to hold one tensor, got {type(result).__name__}. For the future"
            " of an all_reduce, add .then(lambda future: future.value()[0])."
        )
    if result.numel() != flat.numel():
        raise ValueError(
            f"expected a result of the buffer's {flat.numel()} elements, got {result.numel()}"
        )
    if flat.is_sparse or result.data_ptr() != flat.data_ptr() or result.dtype != flat.dtype:
        bucket.result = result


def hook_name(hook: Callable[..., Any]) -> str:
    """Its qualified name, by which the ranks compare; a partial's is that of its function."""
    function = getattr(hook, "func", hook)
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{function.__module__}.{name}"

"""Tensors that are not what they shall be yet, and become so when anyone looks at them.

[Note: looking] What torch is asked about a tensor of one of these classes goes through
``__torch_function__`` first, as it does for any subclass: an operation, a list of tensors for a
fused one, ``.data``, ``detach``, a copy. That completes the tensor, which then is of its own class
again; the classes are put on and taken off an object as torch does with its uninitialized
parameters. So nobody can read a value that is under way, whoever it is: clipping, loss scaling,
checkpoints, averages of weights, other modules. Native code that is handed a parameter asks torch
nothing: it is met by hooks on modules before it. Compiled graphs do not ask either, and where
torch compiles there are no such tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

# Under this name a lazy tensor holds what completes it.
_COMPLETE = "_gradsched_complete"
_GRAD: Any = Tensor.grad
_get_grad, _set_grad = _GRAD.__get__, _GRAD.__set__

# Of each class of lazy tensors, the one that they are of before and after.
_OWN: dict[type, type] = {}


class _Lazy:
    """Mixed into a tensor's class."""

    # What may be asked of it as it is.
    PASSES: frozenset[Any] = frozenset()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        _OWN[cls] = nn.Parameter if issubclass(cls, nn.Parameter) else Tensor

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func in cls.PASSES:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        for tensor in _lazy_in((args, kwargs)):
            complete(tensor)
        return func(*args, **(kwargs or {}))

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        complete(self)
        return self.__deepcopy__(memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        complete(self)
        return self.__reduce_ex__(protocol)


def looks_of_a_tensor() -> Iterator[Any]:
    """What can be told of a tensor without its values."""
    tensor: Any = Tensor
    for name in ("requires_grad", "is_leaf", "shape", "dtype", "device", "layout", "ndim"):
        yield getattr(tensor, name).__get__
    yield from (tensor.size, tensor.numel, tensor.dim, tensor.element_size)
    yield from (tensor.is_floating_point, tensor.is_complex)
    yield from (tensor.is_sparse.__get__, tensor.is_cuda.__get__)


def _questions() -> Iterator[Any]:
    """What a parameter looks like, and its gradient: an object of its own, which may be open."""
    tensor: Any = Tensor
    yield from looks_of_a_tensor()
    yield from (tensor.requires_grad.__set__, tensor.requires_grad_)


class OpenGradient(_Lazy, Tensor):
    """A view of a bucket that is being reduced."""


class DueParameter(_Lazy, nn.Parameter):
    """A parameter that an optimizer has still to update."""

    # What it looks like, and its gradient: an object of its own, which may be an open one.
    PASSES = frozenset(_questions())

    # Asked for and set of every parameter between two steps, so not by ``__torch_function__``:
    # that is Python called back from C.
    @property
    def grad(self) -> Tensor | None:
        with torch._C.DisableTorchFunctionSubclass():
            grad: Tensor | None = _get_grad(self)
        return grad

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        with torch._C.DisableTorchFunctionSubclass():
            _set_grad(self, value)

    @grad.deleter
    def grad(self) -> None:
        self.grad = None


def make_lazy(tensors: Iterable[Any], lazy: type[_Lazy], completes: Callable[[], None]) -> None:
    """Have ``completes()`` called before anyone looks at one; it must ``settle`` them all."""
    for tensor in tensors:
        setattr(tensor, _COMPLETE, completes)
        tensor.__class__ = lazy


def settle(tensors: Iterable[Any]) -> None:
    """Of their own classes again, whatever they hold. Nothing for those that are."""
    for tensor in tensors:
        # Not isinstance: nn.Parameter answers that in Python, and there are thousands.
        own = _OWN.get(type(tensor))
        if own is not None:
            tensor.__class__ = own
            delattr(tensor, _COMPLETE)


def complete(tensor: Any) -> None:
    """Have it be what it shall be. Nothing where it is."""
    if isinstance(tensor, _Lazy):
        getattr(tensor, _COMPLETE)()


def completion_of(tensor: Any) -> Any:
    """What ``make_lazy`` was given for it; it must be lazy."""
    return getattr(tensor, _COMPLETE)


def is_lazy(tensor: Any) -> bool:
    return isinstance(tensor, _Lazy)


def _lazy_in(value: Any) -> Iterator[Any]:
    if isinstance(value, _Lazy):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _lazy_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _lazy_in(item)

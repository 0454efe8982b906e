"""Hooks on modules, and what modules return to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any
from weakref import WeakMethod

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class WeakHook:
    """A module's hook, a method that it does not keep alive; on a copied module it does nothing.

    ``given`` are passed to the method before what a hook gets.
    """

    def __init__(self, method: Callable[..., None] | None = None, *given: Any) -> None:
        self._method = WeakMethod(method) if method is not None else None
        self._given = given

    def __call__(self, *args: Any) -> None:
        method = self._method() if self._method is not None else None
        if method is not None:
            method(*self._given, *args)

    def __reduce__(self) -> tuple[type[WeakHook], tuple[()]]:
        return WeakHook, ()


class BeforeForward(WeakHook):
    """Tells that a module is about to run; not where torch compiles, as nothing is open there."""

    def __call__(self, *args: Any) -> None:
        if not torch.compiler.is_compiling():
            super().__call__(*args)


def hook_owners(module: nn.Module, method: Callable[..., None]) -> list[RemovableHandle]:
    """Have ``method(owner, inputs)`` called before each module runs that owns parameters."""
    return [
        owner.register_forward_pre_hook(BeforeForward(method))
        for owner in module.modules()
        if owner._parameters
    ]


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in a module's output: in tuples, lists, mappings and dataclasses."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)
    elif is_dataclass(value):
        for field in fields(value):
            yield from tensors_in(getattr(value, field.name))

"""Open gradients that answer, before they have come, what clipping and GradScaler ask of them.

[Note: put off] Their norms, and whether they are finite, are known from their owners (see
[Note: foresight]). What multiplies or clamps them is put off: noted, and done when they have come,
in the order in which it was asked for, and before any update that is due; the same operations on
the same values. All else that is asked waits for them (see [Note: looking]).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_gradsched.runtime.inquiry import Inquiry, unscale
from lightning_gradsched.runtime.lazy import (
    OpenGradient,
    completion_of,
    is_lazy,
    looks_of_a_tensor,
    make_lazy,
)
from lightning_gradsched.runtime.scatter import Deferred, ScatteredBucket


@dataclass(frozen=True, slots=True)
class _Place:
    """Completes the gradient at ``place`` of ``bucket``, and all of its group."""

    completes: Callable[[], None]
    bucket: ScatteredBucket
    place: int
    inquiry: Inquiry

    def __call__(self) -> None:
        self.completes()

    @property
    def is_due(self) -> bool:
        """Whether a step has been made with it: what comes later is not part of that."""
        return is_lazy(self.bucket.slots[self.place].param)

    @property
    def history(self) -> list[Deferred]:
        return [done for done in self.bucket.deferred if self.place in done.places]


class ScatteredGradient(OpenGradient):
    """A view of a bucket whose means are on their way from their owners."""

    PASSES = frozenset(looks_of_a_tensor())

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        answer = _ANSWERS.get(func)
        if answer is not None and args:
            result = answer(func, args, kwargs or {})
            if result is not NotImplemented:
                return result
        return super().__torch_function__(func, types, args, kwargs)


def open_views(inquiry: Inquiry, bucket: ScatteredBucket, completes: Callable[[], None]) -> None:
    """Have whoever looks at a gradient of ``bucket`` wait for it, but for what it can answer."""
    for place, view in enumerate(bucket.views):
        make_lazy([view], ScatteredGradient, _Place(completes, bucket, place, inquiry))


def _norm(func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """``_foreach_norm(gradients, order)``, ``vector_norm(gradient, order)``."""
    tensors, *rest = args
    if kwargs or len(rest) > 1:
        return NotImplemented
    order = float(rest[0]) if rest else 2.0
    norms = [_norm_of(tensor, order) for tensor in _listed(tensors)]
    if any(norm is None for norm in norms):
        return NotImplemented
    return norms if isinstance(tensors, (list, tuple)) else norms[0]


def _norm_of(tensor: Tensor, order: float) -> Tensor | None:
    if not isinstance(tensor, ScatteredGradient):
        # On the CPU the fused operation is this one, one by one.
        norm: Tensor = torch.linalg.vector_norm(tensor, order)
        return norm
    at: _Place = completion_of(tensor)
    history = at.history
    if len(history) > 1 or (history and history[0].inv_scale is None):
        return None
    inv_scale = history[0].inv_scale if history else None
    return at.inquiry.norm(at.bucket, at.place, order, inv_scale)


def _defer(func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Of one gradient or a list of them, in place, by numbers alone."""
    tensors, *rest = args
    numbers = [value for value in (*rest, *kwargs.values()) if value is not None]
    if not all(map(_is_number, numbers)) or not _may_be_deferred(tensors):
        return NotImplemented
    rest = [_kept(value) for value in rest]
    kwargs = {name: _kept(value) for name, value in kwargs.items()}
    is_list = isinstance(tensors, (list, tuple))

    def apply(views: list[Tensor]) -> None:
        for those in [views] if is_list else views:
            func(those, *rest, **kwargs)

    _put_off(tensors, apply)
    if others := _others(tensors):
        apply(others)
    return tensors


def _unscale(_func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """GradScaler's: ``(gradients, found_inf, inv_scale)``."""
    tensors, found_inf, inv_scale = args
    if kwargs or not _may_be_deferred(tensors):
        return NotImplemented
    finite = [_are_finite(bucket, of) for bucket, of in _by_bucket(tensors).items()]
    if any(known is None for known in finite):
        return NotImplemented
    if not all(finite):
        found_inf.fill_(1.0)
    kept, ignored = inv_scale.clone(), torch.zeros_like(found_inf)
    _put_off(tensors, lambda views: unscale(views, ignored, kept), float(inv_scale))
    if others := _others(tensors):
        unscale(others, found_inf, inv_scale)
    return None


def _are_finite(bucket: ScatteredBucket, of: Sequence[_Place]) -> bool | None:
    known = of[0].inquiry.all_finite(bucket, [at.place for at in of])
    return None if any(at.history for at in of) else known


def _put_off(
    tensors: Any, apply: Callable[[list[Tensor]], object], inv_scale: float | None = None
) -> None:
    for bucket, of in _by_bucket(tensors).items():
        bucket.deferred.append(Deferred(tuple(at.place for at in of), apply, inv_scale))


def _others(tensors: Any) -> list[Tensor]:
    """Those that have come, or wait for themselves."""
    return [tensor for tensor in _listed(tensors) if not isinstance(tensor, ScatteredGradient)]


def _by_bucket(tensors: Any) -> dict[ScatteredBucket, list[_Place]]:
    """Where those are that have not come."""
    places: dict[ScatteredBucket, list[_Place]] = {}
    for tensor in _listed(tensors):
        if isinstance(tensor, ScatteredGradient):
            at: _Place = completion_of(tensor)
            places.setdefault(at.bucket, []).append(at)
    return places


def _may_be_deferred(tensors: Any) -> bool:
    return not any(at.is_due for of in _by_bucket(tensors).values() for at in of)


def _listed(tensors: Any) -> Sequence[Tensor]:
    return tensors if isinstance(tensors, (list, tuple)) else (tensors,)


def _is_number(value: Any) -> bool:
    """Or a tensor of one, that is known."""
    if isinstance(value, Tensor):
        return value.ndim == 0 and not is_lazy(value)
    return isinstance(value, (int, float))


def _kept(value: Any) -> Any:
    """As it is now."""
    return value.clone() if isinstance(value, Tensor) else value


_ANSWERS: dict[Any, Callable[[Callable[..., Any], Any, Any], Any]] = {
    torch._foreach_norm: _norm,
    torch.linalg.vector_norm: _norm,
    torch._foreach_mul_: _defer,
    torch._foreach_clamp_min_: _defer,
    torch._foreach_clamp_max_: _defer,
    Tensor.mul_: _defer,
    Tensor.clamp_: _defer,
    torch._amp_foreach_non_finite_check_and_unscale_: _unscale,
}
# What may be answered, or put off, before a gradient has come; asked of the first argument.
QUESTIONS = frozenset(_ANSWERS)

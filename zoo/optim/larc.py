"""LARC: each parameter's step is tied to the size of the parameter.

You, Gitman, Ginsburg 2017, arXiv 1708.03888, equation 6 (LARS): a local rate eta ||w|| / ||g|| for
each tensor. LARC uses it either as a factor on the step ("scale"), or as a limit to the global rate
("clip", min(local rate, lr)). Laanait et al. 2019 (arXiv 1909.11150) and Kurth et al. 2018 (arXiv
1810.01993) trained with it.

[Note: on the gradient or on the update] Both papers' code rescales the gradient and then gives it
to Adam. Adam divides by its running size of the gradient, so a constant factor cancels: what is
left is how the factor changes over time. Applied to the update that the optimizer came to, LARC
does what it says for every optimizer. For SGD without momentum and weight decay the two are equal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

Placement = Literal["update", "gradient"]


def with_larc(
    params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
    optimizer: Callable[..., Optimizer],
    eta: float = 1e-3,
    mode: Literal["clip", "scale"] = "clip",
    placement: Placement = "update",
    eps: float = 1e-8,
    least_factor: float = 0.0,
    lr: float | None = None,
) -> Optimizer:
    """`optimizer(params)`, each of whose steps goes through LARC.

    What comes back is that optimizer itself with two hooks on its `step`, closure or not:
    schedules, gradient scaling and checkpoints treat it as ever. LARC keeps nothing from step to
    step, so `state_dict` is the optimizer's own.

    With w the parameter, d the optimizer's direction (placement "update": the update divided by
    lr) or the gradient (placement "gradient"), and local = eta ||w|| / (||d|| + eps), the step is
    multiplied by

        "clip":  min(local / lr, 1)     no step is longer than eta ||w||, or than it would be
        "scale": local                  a step is lr eta ||w|| long, whatever d's length

    A parameter that is zero, or whose d is, takes its step unchanged: it would never leave zero.

    Args:
        optimizer: parameters -> optimizer.
        eta: trust coefficient: 1e-3 for Laanait et al., 2e-3 for Kurth et al.
        placement: [Note: on the gradient or on the update] in this file. "update" needs memory for
            a copy of the weights while `step` runs.
        least_factor: no step is multiplied by less, nor then by more than 1; Laanait et al.: 1e-4.
            0 switches both limits off.
        lr: the optimizer's; None leaves it to the optimizer.

    Raises:
        ValueError: an argument is out of its range.
    """
    larc = _Larc(eta, mode, placement, eps, least_factor)
    built = optimizer(params) if lr is None else optimizer(params, lr=lr)
    built.register_step_pre_hook(larc.before_step)
    built.register_step_post_hook(larc.after_step)
    return built


class _Larc:
    def __init__(
        self, eta: float, mode: str, placement: str, eps: float, least_factor: float
    ) -> None:
        if mode not in ("clip", "scale") or placement not in ("update", "gradient"):
            raise ValueError(
                "expected mode 'clip' or 'scale' and placement 'update' or 'gradient', got "
                f"{mode!r} and {placement!r}; try mode=clip placement=update"
            )
        if eta <= 0.0 or eps < 0.0 or not 0.0 <= least_factor <= 1.0:
            raise ValueError(
                "expected eta > 0, eps >= 0 and least_factor from 0 to 1, got "
                f"{eta}, {eps} and {least_factor}; try eta=1e-3"
            )
        self.eta, self.mode, self.placement = eta, mode, placement
        self.eps, self.least_factor = eps, least_factor
        self._before: list[list[Tensor]] = []

    def before_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Keep the weights, or see to it that the gradients are scaled once they are there."""
        if self.placement == "update":
            self._before = [
                [p.detach().clone() for p in g["params"]] for g in optimizer.param_groups
            ]
            return None
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._scale_gradients(optimizer)
            return None

        def closure_and_scale() -> Any:
            loss = closure()
            self._scale_gradients(optimizer)
            return loss

        return args[:1], {**kwargs, "closure": closure_and_scale}

    @torch.no_grad()
    def after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Scale what the step has added to the weights."""
        if self.placement == "gradient":
            return
        for group, before in zip(optimizer.param_groups, self._before, strict=True):
            pairs = [
                (p, b) for p, b in zip(group["params"], before, strict=True) if p.grad is not None
            ]
            if not pairs:
                continue
            after, before = map(list, zip(*pairs, strict=True))
            # The direction is update / lr; lr's sign does not matter to its norm.
            norms = [
                n / group["lr"] for n in torch._foreach_norm(torch._foreach_sub(after, before))
            ]
            factors = self._factors(torch._foreach_norm(before), norms, group["lr"])
            for weight, old, factor in zip(after, before, factors, strict=True):
                # Exact where the factor is 1.
                weight.copy_(torch.lerp(old, weight, factor.to(weight.dtype)))
        self._before = []

    @torch.no_grad()
    def _scale_gradients(self, optimizer: Optimizer) -> None:
        if getattr(optimizer, "grad_scale", None) is not None:
            raise RuntimeError(
                "LARC on the gradient expected unscaled gradients, but "
                f"{type(optimizer).__name__} divides by the loss scale within its step; set "
                "fused=False in the optimizer, or placement=update"
            )
        for group in optimizer.param_groups:
            with_gradient = [p for p in group["params"] if p.grad is not None]
            if not with_gradient:
                continue
            gradients = [p.grad for p in with_gradient]
            norms = torch._foreach_norm(with_gradient), torch._foreach_norm(gradients)
            torch._foreach_mul_(gradients, self._factors(*norms, group["lr"]))

    def _factors(
        self, weight_norms: Iterable[Tensor], norms: Iterable[Tensor], lr: float | Tensor
    ) -> list[Tensor]:
        return [self._factor(w, d, lr) for w, d in zip(weight_norms, norms, strict=True)]

    def _factor(self, weight_norm: Tensor, norm: Tensor, lr: float | Tensor) -> Tensor:
        factor = self.eta * weight_norm / (norm + self.eps)
        if self.mode == "clip":
            factor = (factor / lr).clamp(max=1.0)
        if self.least_factor:
            factor = factor.clamp(self.least_factor, 1.0)
        return torch.where((weight_norm > 0) & (norm > 0), factor, torch.ones_like(factor))

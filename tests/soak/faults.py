"""What may happen in a step: unusual backwards, exceptions, late ranks; and how a rank is lost."""

from __future__ import annotations

import os
import signal
import time
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


def plain(net: nn.Module, x: Tensor, factor: float) -> None:
    loss_of(net(x), factor).backward()


def retained(net: nn.Module, x: Tensor, factor: float) -> None:
    loss = loss_of(net(x), factor)
    loss.backward(retain_graph=True)
    (3 * loss).backward()


def several_losses(net: nn.Module, x: Tensor, factor: float) -> None:
    for scale in (1.0, 0.5):
        loss_of(net(scale * x), factor).backward()


def two_losses_of_one_output(net: nn.Module, x: Tensor, factor: float) -> None:
    out = net(x)
    loss_of(out, factor).backward(retain_graph=True)
    out.sum().backward()


def penalty_on_parameters(net: nn.Module, x: Tensor, factor: float) -> None:
    loss = loss_of(net(x), factor)
    grads = torch.autograd.grad(loss, dense_parameters(net), create_graph=True, allow_unused=True)
    (loss + sum(g.abs().square().sum().float() for g in grads if g is not None)).backward()


def penalty_on_inputs(net: nn.Module, x: Tensor, factor: float) -> None:
    x = x.clone().requires_grad_()
    loss = loss_of(net(x), factor)
    (slope,) = torch.autograd.grad(loss, x, create_graph=True)
    (loss + (slope.norm() - 1).square()).backward()


def looked_at_before(net: nn.Module, x: Tensor, factor: float) -> None:
    loss = loss_of(net(x), factor)
    torch.autograd.grad(loss, dense_parameters(net), retain_graph=True, allow_unused=True)
    loss.backward()


def with_graph_of_gradients(net: nn.Module, x: Tensor, factor: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of the reference cycle
        loss_of(net(x), factor).backward(create_graph=True)


def of_some_parameters(net: nn.Module, x: Tensor, factor: float) -> None:
    loss_of(net(x), factor).backward(inputs=dense_parameters(net)[::2])


def root_not_seen(net: nn.Module, x: Tensor, factor: float) -> None:
    loss_of(net.forward(x), factor).backward()


def never_backward(net: nn.Module, x: Tensor, factor: float) -> None:
    net(x)
    plain(net, x, factor)


def without_gradients_before(net: nn.Module, x: Tensor, factor: float) -> None:
    with torch.no_grad():
        net(x)
    plain(net, x, factor)


def loss_of(out: Tensor, factor: float) -> Tensor:
    return factor * out.square().mean()


def dense_parameters(net: nn.Module) -> list[Tensor]:
    sparse = {id(m.weight) for m in net.modules() if isinstance(m, nn.Embedding)}
    return [p for p in net.parameters() if p.requires_grad and id(p) not in sparse]


BACKWARDS: dict[str, Callable[[nn.Module, Tensor, float], None]] = {
    f.__name__: f
    for f in (
        retained,
        several_losses,
        two_losses_of_one_output,
        penalty_on_parameters,
        penalty_on_inputs,
        looked_at_before,
        with_graph_of_gradients,
        of_some_parameters,
        root_not_seen,
        never_backward,
        without_gradients_before,
    )
}
# Of the gradients that a rank's reduction rounds once each.
N_REDUCTIONS = {"retained": 2, "several_losses": 2, "two_losses_of_one_output": 2}
# A re-entrant checkpoint takes no autograd.grad and no inputs=.
NOT_WITH_REENTRANT = {
    "penalty_on_parameters",
    "penalty_on_inputs",
    "looked_at_before",
    "with_graph_of_gradients",
    "of_some_parameters",
}
# Exceptions that are caught: on all ranks, each at its place, or on one rank alone.
RAISES = {
    "raises_in_forward": ("forward", ZeroDivisionError),
    "raises_in_backward": ("backward", ZeroDivisionError),
    "interrupted_in_backward": ("backward", KeyboardInterrupt),
    "raises_then_made_anew": ("backward", ZeroDivisionError),
    "raises_on_one_rank": ("backward", ZeroDivisionError),
}
LATE = {"late_in_forward": "forward", "late_in_backward": "backward"}
NOT_FINITE = {"nan_on_one_rank": float("nan"), "inf_on_one_rank": float("inf")}
BETWEEN_STEPS = (
    "made_anew",
    "freezes_or_unfreezes",
    "evaluates_alone",
    "drops_accumulated",
    "copies_the_module",
    "reports",
)
FAULTS = (*BACKWARDS, *RAISES, *LATE, *NOT_FINITE, *BETWEEN_STEPS)
# Of one rank, as its last act; the others must end with a named error.
ENDINGS = ("killed", "killed_in_backward", "stopped", "raised")


def allowed(fault: str, blocks: Sequence[str]) -> bool:
    """Whether torch lets it happen to such a net."""
    return not (fault in NOT_WITH_REENTRANT and any("reentrant" in name for name in blocks))


def raiser(error: type[BaseException]) -> Callable[[], None]:
    def happens() -> None:
        raise error("on purpose")

    return happens


def sleep_a_little() -> None:
    time.sleep(0.03)


def kill_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stop_itself() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)

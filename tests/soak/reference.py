"""The slow twin of a net: the same backward on each rank, averaged afterwards, and compared."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tests.parity.reference import average_gradients

Norms = dict[str, float]  # by parameter


class Buffers:
    """Rank 0's buffers for a net before each forward that follows one to be reduced."""

    def __init__(self, net: nn.Module) -> None:
        self.is_due = True
        self.is_muted = False
        net.register_forward_pre_hook(self._before)
        net.register_forward_hook(self._after, always_call=True)

    def _before(self, net: nn.Module, _inputs: object) -> None:
        if self.is_due:
            for buffer in net.buffers():
                dist.broadcast(buffer, 0)

    def _after(self, _net: nn.Module, _inputs: object, _output: object) -> None:
        self.is_due = torch.is_grad_enabled() and not self.is_muted


def average(twin: nn.Module, *, as_reals: bool) -> dict[str, float]:
    """Average the gradients, dense ones for sparse; of each, the mean over ranks of its norm."""
    norms = []
    for param in twin.parameters():
        if param.grad is not None:
            param.grad = param.grad.detach().to_dense().clone()
        norms.append(0.0 if param.grad is None else _norm(param.grad))
    mean = torch.tensor(norms, dtype=torch.float64) / dist.get_world_size()
    dist.all_reduce(mean)
    average_gradients(twin, as_reals=as_reals)
    return dict(zip(dict(twin.named_parameters()), mean.tolist(), strict=True))


def check_gradients(
    net: nn.Module,
    twin: nn.Module,
    *,
    reduce_dtype: torch.dtype | None,
    n_reductions: int,
    after_average: Callable[[nn.Module, Norms], Norms] = lambda _, norms: norms,
) -> None:
    """``net``'s must be the twin's, once averaged, and have the same bits on all ranks.

    ``after_average``: changes the twin's; gets and gives the norms that tolerances are taken of.
    """
    # In another dtype complex gradients travel, and are divided, as pairs of reals.
    norms = after_average(twin, average(twin, as_reals=reduce_dtype is not None))
    theirs = dict(twin.named_parameters())
    for name, param in net.named_parameters():
        ours, other = param.grad, theirs[name].grad
        assert (ours is None) == (other is None), f"{name}: got {ours}, expected {other}"
        if ours is not None and other is not None:
            tolerance = n_reductions * tolerance_of(param, reduce_dtype, norms[name])
            check_equal(name, ours.to_dense(), other, tolerance)
    check_same_bits({name: param.grad for name, param in net.named_parameters()})


def _norm(grad: Tensor) -> float:
    """Of what is finite in it."""
    return float(torch.linalg.vector_norm(grad.where(grad.isfinite(), 0)))


def tolerance_of(param: Tensor, reduce_dtype: torch.dtype | None, norm: float) -> float:
    """About 1e-6 of the summands' norm for float32, which then are rounded a few times."""
    infos = [torch.finfo(param.dtype)] + ([torch.finfo(reduce_dtype)] if reduce_dtype else [])
    eps = max(info.eps for info in infos)
    smallest = max(info.smallest_normal * info.eps for info in infos)
    return 8 * eps * norm + 8 * smallest * param.numel()


def check_equal(name: str, ours: Tensor, other: Tensor, tolerance: float) -> None:
    finite = other.isfinite()
    assert torch.equal(ours.isfinite(), finite), f"{name}: NaN or inf in {ours}, {other} expected"
    assert torch.equal(ours.isnan(), other.isnan()), f"{name}: NaN in {ours}, {other} expected"
    distance = float(torch.linalg.vector_norm((ours - other)[finite].to(torch.complex128)))
    assert distance <= tolerance, f"{name}: off by {distance:.3g}, more than {tolerance:.3g}"


def check_same_bits(tensors: Mapping[str, Tensor | None]) -> None:
    """On all ranks."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        dense = None if tensor is None else tensor.to_dense().contiguous()
        bits = b"" if dense is None else dense.view(-1).view(torch.uint8).numpy().tobytes()
        digest.update(f"{name} {dense is None}".encode() + bits)
    here = torch.frombuffer(bytearray(digest.digest()[:8]), dtype=torch.int64)
    everywhere = [torch.empty_like(here) for _ in range(dist.get_world_size())]
    dist.all_gather(everywhere, here)
    assert all(torch.equal(here, there) for there in everywhere), "unequal bits across ranks"

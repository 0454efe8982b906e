"""DDP's communication hooks, unchanged: beside DDP on real ranks, bit for bit."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import (
    debugging_hooks,
    default_hooks,
    powerSGD_hook,
)
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from lightning_gradsched import GradientScheduler, GradSchedConfig
from tests.parity.nets import WIDTH, Dense, Residual
from tests.ranks import errors_of_ranks, names_silent, run_ranks, tell, until_told
from tests.runtime.branches import Branches

Gradients = list[dict[str, Tensor]]
N_STEPS = 6


# Not annotated: DDP wants the annotations' objects, and they are strings here.
def sign_hook(state, bucket):
    """A user's own: sends signs, keeps a memory, returns a new tensor."""
    state.setdefault("is_last", []).append(bucket.is_last())
    grads = bucket.gradients()
    assert [g.shape for g in grads] == [p.shape for p in bucket.parameters()]
    assert sum(g.numel() for g in grads) == bucket.buffer().numel()
    scale = bucket.buffer().abs().max()
    signs = bucket.buffer().sign() * scale
    work = dist.all_reduce(signs, async_op=True)
    return work.get_future().then(lambda future: future.value()[0] / dist.get_world_size())


def integers_hook(_state, bucket):
    """Two collectives, the second from a callback of the first: one scale, then 8-bit numbers."""
    buffer = bucket.buffer()
    scale = buffer.abs().max()

    def send_integers(_):
        integers = (buffer / scale * 127).round_().to(torch.int32)
        dist.all_reduce(integers, async_op=True).get_future().wait()
        return integers * (scale / 127 / dist.get_world_size())

    work = dist.all_reduce(scale, op=dist.ReduceOp.MAX, async_op=True)
    return work.get_future().then(send_integers)


def padding_hook(_state, bucket):
    """Grows the bucket's memory to a multiple of 64 elements, sends, and cuts it back."""
    buffer = bucket.buffer()
    n = buffer.numel()
    buffer.resize_(-(-n // 64) * 64)[n:].fill_(float("nan"))
    future = dist.all_reduce(buffer.div_(dist.get_world_size()), async_op=True).get_future()
    return future.then(lambda _: buffer.resize_(n))


def power_sgd(**options: Any) -> powerSGD_hook.PowerSGDState:
    return powerSGD_hook.PowerSGDState(None, start_powerSGD_iter=2, **options)


# name -> (the hook, what makes its state)
HOOKS: dict[str, tuple[Callable[..., Any], Callable[[], Any]]] = {
    "allreduce": (default_hooks.allreduce_hook, lambda: None),
    "fp16": (default_hooks.fp16_compress_hook, lambda: None),
    "fp16_wrapper": (
        default_hooks.fp16_compress_wrapper(default_hooks.allreduce_hook),
        lambda: dist.group.WORLD,
    ),
    "power_sgd": (powerSGD_hook.powerSGD_hook, power_sgd),
    "power_sgd_cold": (
        powerSGD_hook.powerSGD_hook,
        partial(power_sgd, warm_start=False, matrix_approximation_rank=2),
    ),
    "signs": (sign_hook, dict),
    "integers": (integers_hook, lambda: None),
    "padding": (padding_hook, lambda: None),
}


def train(
    net: nn.Module, forward: nn.Module, rank: int, no_sync: Callable[[], Any] | None = None
) -> Gradients:
    generator = torch.Generator().manual_seed(100 + rank)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    steps: Gradients = []
    for _ in range(N_STEPS):
        optimizer.zero_grad()
        for is_last in (True,) if no_sync is None else (False, True):
            x = torch.randn(3, WIDTH, generator=generator)
            with nullcontext() if is_last else no_sync():
                torch.cos(forward(x)).mean().backward()
        steps.append({n: p.grad.clone() for n, p in net.named_parameters()})
        optimizer.step()
    return steps


def beside_ddp(
    rank: int, name: str, make: Callable[[], nn.Module], accumulate: bool
) -> tuple[Gradients, Gradients]:
    hook, make_state = HOOKS[name]
    torch.manual_seed(0)
    ours = make()
    theirs = deepcopy(ours)
    scheduler = GradientScheduler(ours, GradSchedConfig(planner="ddp", record_every_n_steps=1))
    scheduler.register_comm_hook(make_state(), hook)
    ddp = DistributedDataParallel(theirs)
    ddp.register_comm_hook(make_state(), hook)
    muted = (scheduler.no_sync, ddp.no_sync) if accumulate else (None, None)
    results = train(ours, ours, rank, muted[0]), train(theirs, ddp, rank, muted[1])
    assert scheduler.report().n_steps > 0, "the recorder follows hooks too"
    scheduler.detach()
    return results


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_gives_what_it_gives_in_ddp(name: str, accumulate: bool) -> None:
    ranks = run_ranks(2, beside_ddp, name, Residual, accumulate)
    for ours, theirs in ranks:
        for step in range(N_STEPS):
            for param, grad in ours[step].items():
                assert torch.equal(grad, theirs[step][param]), (step, param)
                assert torch.equal(grad, ranks[0][0][step][param]), (step, param, "across ranks")


@pytest.mark.parametrize("name", ["fp16", "signs"])
def test_a_hook_sees_channels_last_gradients_as_in_ddp(name: str) -> None:
    for ours, theirs in run_ranks(2, beside_ddp, name, Dense, False):
        for step in range(N_STEPS):
            for param, grad in ours[step].items():
                assert torch.equal(grad, theirs[step][param]), (step, param)


def by_tensor(rank: int, name: str) -> tuple[Gradients, Gradients, list[bool]]:
    """One group a parameter, so a hook has many buckets under way; and without any hook."""
    hook, make_state = HOOKS[name]
    torch.manual_seed(0)
    hooked = Residual()
    plain = deepcopy(hooked)
    state = make_state()
    config = GradSchedConfig(planner="per_tensor")
    scheduler = GradientScheduler(hooked, config)
    scheduler.register_comm_hook(state, hook)
    GradientScheduler(plain, config)
    lasts = state if isinstance(state, dict) else {}
    return train(hooked, hooked, rank), train(plain, plain, rank), lasts.get("is_last", [])


def test_allreduce_hook_changes_nothing_whatever_the_groups() -> None:
    for hooked, plain, _ in run_ranks(2, by_tensor, "allreduce"):
        for step in range(N_STEPS):
            assert all(torch.equal(g, plain[step][n]) for n, g in hooked[step].items())


@pytest.mark.parametrize("name", ["power_sgd", "integers"])
def test_hooks_with_several_collectives_do_not_mix_between_groups(name: str) -> None:
    """Each issues its second collective from a thread of gloo's: DDP leaves that to chance."""
    first, second, third = run_ranks(3, by_tensor, name)
    for step in range(N_STEPS):
        for param, grad in first[0][step].items():
            assert torch.equal(grad, second[0][step][param]), (step, param)
            assert torch.equal(grad, third[0][step][param]), (step, param)
            exact = first[1][step][param]
            # lossy: near the mean in the first steps, where the weights are still alike
            if step < 2:
                assert (grad - exact).norm() <= 0.05 * exact.norm() + 1e-6, (step, param)


def test_the_last_bucket_of_each_backward_says_so() -> None:
    for _, plain, lasts in run_ranks(2, by_tensor, "signs"):
        n_groups = len(plain[0])
        assert lasts == [*[False] * (n_groups - 1), True] * N_STEPS


def partly_used(rank: int) -> list[dict[str, tuple[Tensor | None, Tensor | None]]]:
    torch.manual_seed(0)
    ours = Branches()
    theirs = deepcopy(ours)
    scheduler = GradientScheduler(ours, GradSchedConfig(planner="single"))
    scheduler.register_comm_hook(None, default_hooks.allreduce_hook)
    ddp = DistributedDataParallel(theirs, find_unused_parameters=True)
    ddp.register_comm_hook(None, default_hooks.allreduce_hook)
    steps = []
    for use in [("ab", "ab"), ("abc", "a"), ("a", "b")]:
        for net, forward in ((ours, ours), (theirs, ddp)):
            net.zero_grad()
            forward(torch.full((2, WIDTH), 0.1 * (rank + 1)), use[rank]).sum().backward()
        pairs = zip(ours.named_parameters(), theirs.parameters(), strict=True)
        steps.append({n: (p.grad, q.grad) for (n, p), q in pairs})
        steps[-1] = {
            n: tuple(g if g is None else g.clone() for g in grads) for n, grads in steps[-1].items()
        }
    return steps


def test_counts_travel_beside_a_hook() -> None:
    for steps in run_ranks(2, partly_used):
        assert steps[0]["c.weight"] == (None, None), "used by no rank"
        for step in steps:
            for name, (ours, theirs) in step.items():
                assert (ours is None) == (theirs is None), name
                assert ours is None or torch.equal(ours, theirs), name


def boom(_state: Any, bucket: dist.GradBucket) -> Future[Tensor]:
    raise ValueError(f"no such compressor for bucket {bucket.index()}")


def late_boom(_state: Any, bucket: dist.GradBucket) -> Future[Tensor]:
    future = dist.all_reduce(bucket.buffer(), async_op=True).get_future()
    return future.then(lambda _: 1 / 0)


def never(_state: Any, bucket: dist.GradBucket) -> Future[Tensor]:
    return torch.futures.Future()


def bare_future(_state: Any, bucket: dist.GradBucket) -> Future[Tensor]:
    return dist.all_reduce(bucket.buffer(), async_op=True).get_future()


def cut_off(_state: Any, bucket: dist.GradBucket) -> Future[Tensor]:
    future: Future[Tensor] = torch.futures.Future()
    future.set_result(bucket.buffer()[1:])
    return future


def no_future(_state: Any, bucket: dist.GradBucket) -> Tensor:
    return bucket.buffer()


def fail(rank: int, hook: Callable[..., Any], stall_timeout_s: float = 60.0) -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    config = GradSchedConfig(planner="per_tensor", stall_timeout_s=stall_timeout_s)
    scheduler = GradientScheduler(net, config)
    scheduler.register_comm_hook(None, hook)
    try:
        net(torch.ones(1, 2)).sum().backward()
    finally:
        dist.barrier()


@pytest.mark.parametrize(
    ("hook", "said"),
    [
        (boom, "ValueError: no such compressor for bucket 0"),
        (late_boom, "ZeroDivisionError: division by zero"),
        (bare_future, "add .then(lambda future: future.value()[0])"),
        (cut_off, "expected a result of the buffer's 2 elements, got 1"),
        (no_future, "expected a torch.futures.Future, got tensor"),
    ],
)
def test_a_hook_that_fails_is_named_with_its_group(hook: Callable[..., Any], said: str) -> None:
    for message in errors_of_ranks(2, fail, hook):
        assert message.startswith("ReductionError: communication hook"), message
        assert f"{hook.__name__}' failed on group 0 (1.bias)" in message
        assert said in message
        assert not re.search(r"\branks? \d", message.split("failed on")[1], re.IGNORECASE), (
            "no rank is to blame"
        )


def test_a_hook_that_never_ends_is_named_with_its_group_in_time() -> None:
    for rank, message in enumerate(errors_of_ranks(2, fail, never, 10.0)):
        waited = re.search(
            r"waited (\S+) s for group 0 \(1\.bias\) and gives up: communication hook", message
        )
        assert waited, message
        assert float(waited[1]) >= 7.0
        assert "never' failed on group 0 (1.bias): its future was not complete after" in message
        # The one that gives up last finds that the other has.
        gave_up = f"Rank {1 - rank} has ended: it gave up waiting for group 0 (1.bias)"
        assert "All other ranks answer and have come as far" in message or gave_up in message


def stall(rank: int, hook: Callable[..., Any], how: str) -> None:
    """Rank 2 does not come to its second backward, or when the others have given up."""
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    scheduler = GradientScheduler(net, GradSchedConfig(planner="per_tensor", stall_timeout_s=12.0))
    scheduler.register_comm_hook(None, hook)
    net(torch.ones(1, 2)).sum().backward()
    if rank == 2 and how == "late":
        for other in range(2):
            until_told(f"rank {other} gives up")
    if rank == 2 and how == "raised":
        raise ZeroDivisionError("no such luck")
    try:
        net(torch.ones(1, 2)).sum().backward()
    finally:
        tell(f"rank {rank} gives up")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "who"),
    [
        ("late", "Rank 2 is alive but has not come so far: after 1 backwards, not in one"),
        ("raised", "Rank 2 "),
    ],
)
def test_a_rank_that_is_missing_in_a_hook_is_named(how: str, who: str) -> None:
    first, second, third = errors_of_ranks(3, stall, default_hooks.allreduce_hook, how)
    for message in (first, second):
        assert "communication hook 'torch.distributed" in message
        assert "default_hooks.allreduce_hook' failed on group 0 (1.bias): " in message
        assert who in message or (how == "raised" and names_silent(2, message))
    assert third.startswith("ReductionError" if how == "late" else "ZeroDivisionError")


def unlike(rank: int) -> None:
    net = nn.Linear(2, 2)
    scheduler = GradientScheduler(net)
    if rank == 1:
        scheduler.register_comm_hook(None, partial(default_hooks.allreduce_hook))
    net(torch.ones(1, 2)).sum().backward()


def test_ranks_with_unlike_hooks_say_so() -> None:
    for message in errors_of_ranks(2, unlike):
        assert message.startswith("ConsensusError")
        assert "communication hook is None on rank 0" in message
        assert "default_hooks.allreduce_hook' on rank 1" in message


def register(rank: int, when: str) -> None:
    net = nn.Linear(2, 2)
    config = GradSchedConfig(reduce_dtype="bf16" if when == "with_dtype" else None)
    scheduler = GradientScheduler(net, config)
    if when == "twice":
        scheduler.register_comm_hook(None, debugging_hooks.noop_hook)
    if when == "late":
        net(torch.ones(1, 2)).sum().backward()
    scheduler.register_comm_hook(None, default_hooks.allreduce_hook)


@pytest.mark.parametrize(
    ("when", "said"),
    [
        ("twice", "expected one communication hook"),
        ("late", "before the first backward"),
        ("with_dtype", "expected reduce_dtype or a communication hook, got 'bf16'"),
    ],
)
def test_a_hook_that_cannot_be_registered_is_refused(when: str, said: str) -> None:
    for message in errors_of_ranks(2, register, when):
        assert message.startswith("GradSchedError")
        assert said in message


def replanned(rank: int) -> tuple[list[int], bool]:
    """A layer is unfrozen: what PowerSGD memorized of the old groups must not meet the new ones."""
    torch.manual_seed(0)
    net = Branches()
    net.a.requires_grad_(False)
    seen: list[int] = []

    def hook(state: Any, bucket: dist.GradBucket) -> Future[Tensor]:
        seen.append(bucket.index())
        return powerSGD_hook.powerSGD_hook(state, bucket)

    scheduler = GradientScheduler(net, GradSchedConfig(planner="ddp"))
    scheduler.register_comm_hook(power_sgd(), hook)
    for step in range(8):
        net.zero_grad()
        net.a.requires_grad_(step >= 4)
        net(torch.full((2, WIDTH), 0.1 * (rank + 1)), "abc").square().sum().backward()
    return seen, bool(net.a.weight.grad.isfinite().all())


def test_a_new_plans_groups_have_new_indices() -> None:
    # The step in which it gets its first gradients sends its two parameters by themselves.
    assert run_ranks(2, replanned) == [([0] * 5 + [1, 2] + [3] * 3, True)] * 2

"""The ways to average gradients that the benchmarks compare: each turns a net into a step.

A step is forward and backward of a loss, and leaves averaged gradients. The optimizer, alike for
all, is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from benchmarks.emulation import device_waited
from benchmarks.horovod_rival import horovod_optimizer, is_installed, reduce_after_backward
from lightning_gradsched import GradientScheduler, GradSchedConfig

DDP_CAPS_MIB = (1, 2, 5, 10, 25, 50)
ONE_BUCKET_MIB = 1 << 20
MOST_PLANNING_STEPS = 50


class Rival(NamedTuple):
    """``step`` runs forward and backward; ``warm_up_steps`` of them belong to no measurement.

    ``finish``: waits for what the last step has left under way.
    """

    step: Callable[[], None]
    warm_up_steps: int
    scheduler: GradientScheduler | None = None
    finish: Callable[[], None] = lambda: None


Make = Callable[[nn.Module, Tensor], Rival]


def alone(net: nn.Module, x: Tensor) -> Rival:
    """No reduction at all: the compute of a step."""
    return Rival(_step(net, net, x), warm_up_steps=2)


def ddp_default(net: nn.Module, x: Tensor) -> Rival:
    """As it comes: a first bucket of 1 MiB, then 25 MiB."""
    return Rival(_step(net, DistributedDataParallel(net), x), warm_up_steps=3)


def ddp(cap_mib: int) -> Make:
    """Tuned by hand: every bucket of this cap, gradients as views of them."""

    def make(net: nn.Module, x: Tensor) -> Rival:
        wrapped = DistributedDataParallel(
            net,
            # The first bucket's cap of 1 MiB holds only where this is left out.
            bucket_cap_mb=cap_mib,
            gradient_as_bucket_view=True,
        )
        return Rival(_step(net, wrapped, x), warm_up_steps=3)

    return make


def fsdp2_replicate(net: nn.Module, x: Tensor) -> Rival:
    """FSDP2's engine over a replicated mesh: one all-reduce a child module that has parameters."""
    from torch.distributed._composable.replicate_with_fsdp import replicate

    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    for child in net.children():
        replicate(child, mesh=mesh)
    replicate(net, mesh=mesh)
    return Rival(_step(net, net, x), warm_up_steps=3)


def gradsched(planner: str) -> Make:
    """This package: steps until its plan stands are its warm-up."""

    def make(net: nn.Module, x: Tensor) -> Rival:
        scheduler = GradientScheduler(net, GradSchedConfig(planner=planner, record_every_n_steps=5))
        return Rival(_step(net, net, x), MOST_PLANNING_STEPS, scheduler)

    return make


class NoUpdate(torch.optim.Optimizer):
    """Its step changes nothing, as the optimizer is left out: but it is what a group is due for."""

    def __init__(self, params: Iterable[Tensor]) -> None:
        super().__init__(params, {})

    def step(self, closure: Any = None) -> None:
        if closure is not None:
            closure()


def gradsched_forward(net: nn.Module, x: Tensor) -> Rival:
    """This package, with reductions that go on into the next forward."""
    config = GradSchedConfig(
        overlap_forward=True, per_parameter_optimizers=("NoUpdate",), record_every_n_steps=5
    )
    scheduler = GradientScheduler(net, config)
    tell_the_device(scheduler._launches.open_groups, lambda work, _bucket: work)
    optimizer = NoUpdate(net.parameters())
    scheduler.overlap(optimizer)
    return _with_update(net, x, scheduler, optimizer)


def gradsched_lag(net: nn.Module, x: Tensor) -> Rival:
    """This package, each step waiting for the reductions of the step before: not DDP's update."""
    config = GradSchedConfig(gradient_lag=1, record_every_n_steps=5)
    scheduler = GradientScheduler(net, config)
    return Rival(_step(net, net, x), MOST_PLANNING_STEPS, scheduler, scheduler.flush)


def gradsched_shard(net: nn.Module, x: Tensor) -> Rival:
    """This package, each rank updating its shard: weights are sent while the next forward runs."""
    config = GradSchedConfig(
        shard_optimizer=True, per_parameter_optimizers=("NoUpdate",), record_every_n_steps=5
    )
    scheduler = GradientScheduler(net, config)
    tell_the_device(scheduler._modes._weights, lambda message: message.work)
    optimizer = NoUpdate(net.parameters())
    scheduler.shard(optimizer)
    return _with_update(net, x, scheduler, optimizer)


def _with_update(
    net: nn.Module, x: Tensor, scheduler: GradientScheduler, optimizer: NoUpdate
) -> Rival:
    step = _step(net, net, x)

    def step_and_update() -> None:
        step()
        optimizer.step()

    return Rival(step_and_update, MOST_PLANNING_STEPS, scheduler, scheduler.flush)


def tell_the_device(waiter: Any, work_of: Callable[..., Any]) -> None:
    """An emulated device knows of no wait in the midst of a forward: it would compute meanwhile.

    ``waiter`` waits by its ``_wait``, for what ``work_of`` makes of the same arguments.
    """
    wait = waiter._wait

    def wait_and_tell(*args: Any) -> None:
        comes_late = not work_of(*args).is_completed()
        wait(*args)
        if comes_late:
            device_waited()

    waiter._wait = wait_and_tell


def horovod(net: nn.Module, x: Tensor) -> Rival:
    """Horovod's optimizer at its defaults: cycles of 1 ms, fusion up to 128 MiB."""
    optimizer = horovod_optimizer(net)
    return Rival(partial(reduce_after_backward, net, x, optimizer), warm_up_steps=5)


SWEEP: dict[str, Make] = {
    **{f"ddp_{cap}MiB": ddp(cap) for cap in DDP_CAPS_MIB},
    "ddp_one_bucket": ddp(ONE_BUCKET_MIB),
}
# Whose steps go on into one another.
MODES: dict[str, Make] = {
    "gradsched_forward": gradsched_forward,
    "gradsched_lag": gradsched_lag,
    "gradsched_shard": gradsched_shard,
}
RIVALS: dict[str, Make] = {
    "alone": alone,
    "gradsched": gradsched("auto"),
    **MODES,
    "ddp_default": ddp_default,
    **SWEEP,
    "fsdp2_replicate": fsdp2_replicate,
    **({"horovod": horovod} if is_installed() else {}),
}


def _step(net: nn.Module, forward: nn.Module, x: Tensor) -> Callable[[], None]:
    parameters = list(net.parameters())

    def step() -> None:
        for parameter in parameters:
            parameter.grad = None
        forward(x).sum().backward()

    return step

"""Horovod among the rivals, where it is installed: its ranks are ours, its links are ours."""

from __future__ import annotations

import importlib.util
import os
from functools import cache
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import SGD


def is_installed() -> bool:
    return importlib.util.find_spec("horovod") is not None


def horovod_optimizer(net: nn.Module) -> Any:
    """Horovod's optimizer around a step that changes nothing; every rank must call it."""
    _initialise()
    import horovod.torch as hvd

    sgd = SGD(net.parameters(), lr=0.0)
    return hvd.DistributedOptimizer(sgd, named_parameters=net.named_parameters())


def reduce_after_backward(net: nn.Module, x: Tensor, optimizer: Any) -> None:
    optimizer.zero_grad()
    net(x).sum().backward()
    optimizer.synchronize()


@cache
def _initialise() -> None:
    """Do what ``horovodrun`` does, for ranks that are running already, each on a host of its own.

    Horovod finds its peers by a small HTTP server; rank 0 keeps it.
    """
    import horovod.torch as hvd
    from horovod.runner.common.util.hosts import SlotInfo
    from horovod.runner.http.http_server import RendezvousServer

    rank, size = dist.get_rank(), dist.get_world_size()
    port = 0
    if rank == 0:
        server = RendezvousServer()
        port = server.start()
        server.init([SlotInfo(f"host{r}", r, 0, r, size, 1, size) for r in range(size)])
    ports: list[Any] = [port]
    dist.broadcast_object_list(ports)
    os.environ.update(
        HOROVOD_HOSTNAME=f"host{rank}",
        HOROVOD_RANK=str(rank),
        HOROVOD_SIZE=str(size),
        HOROVOD_LOCAL_RANK="0",
        HOROVOD_LOCAL_SIZE="1",
        HOROVOD_CROSS_RANK=str(rank),
        HOROVOD_CROSS_SIZE=str(size),
        HOROVOD_GLOO_RENDEZVOUS_ADDR=os.environ["MASTER_ADDR"],
        HOROVOD_GLOO_RENDEZVOUS_PORT=str(ports[0]),
        HOROVOD_CONTROLLER="gloo",
        HOROVOD_CPU_OPERATIONS="gloo",
        HOROVOD_GLOO_IFACE=os.environ["GLOO_SOCKET_IFNAME"],
    )
    hvd.init()

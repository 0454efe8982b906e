"""What the engine holds beside the gradients, and its peak beside DDP's."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lightning_gradsched import GradientScheduler
from tests.ranks import run_ranks

WIDTH = 1024
N_LAYERS = 16  # 64 MiB of gradients


def net() -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(N_LAYERS)))


def held(rank: int) -> tuple[int, int, list[bool]]:
    """Bytes of gradients, bytes of storage that holds them, and which are views of a bucket."""
    model = net()
    scheduler = GradientScheduler(model)
    model(torch.ones(1, WIDTH)).sum().backward()
    buckets = scheduler._reducer.buckets
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    storages = {bucket.flat.untyped_storage().data_ptr(): bucket for bucket in buckets}
    nbytes = sum(bucket.flat.untyped_storage().nbytes() for bucket in buckets)
    views = [grad.untyped_storage().data_ptr() in storages for grad in grads]
    return sum(grad.nbytes for grad in grads), nbytes, views


def test_buckets_are_all_that_is_held_and_gradients_are_views_of_them() -> None:
    for grads_nbytes, buckets_nbytes, views in run_ranks(2, held):
        assert views == [True] * 2 * N_LAYERS
        assert grads_nbytes <= buckets_nbytes <= 1.0001 * grads_nbytes


def memory(field: str) -> int:
    line = next(
        text
        for text in Path("/proc/self/status").read_text().splitlines()
        if text.startswith(field)
    )
    return int(line.split()[1]) * 1024


def growth(rank: int, kind: str) -> int:
    """Bytes by which three steps raise this process's peak over the model alone."""
    model = net()
    forward: nn.Module = model
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    if kind == "ours":
        GradientScheduler(model)
    else:
        forward = DistributedDataParallel(model)
    x: Tensor = torch.ones(1, WIDTH)
    for _ in range(3):
        model.zero_grad()
        forward(x).sum().backward()
    return memory("VmHWM") - before


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_peak_is_at_most_that_of_ddp_plus_5_percent() -> None:
    # The least of three, or of up to eight: what other processes do to the allocator's timing comes
    # to 10 % of one.
    peaks = {"ours": sys.maxsize, "ddp": sys.maxsize}
    for n_done in range(1, 9):
        for kind, least in peaks.items():
            peaks[kind] = min(least, max(run_ranks(2, growth, kind)))
        if n_done >= 3 and peaks["ours"] <= 1.05 * peaks["ddp"]:
            break
    assert peaks["ours"] <= 1.05 * peaks["ddp"]

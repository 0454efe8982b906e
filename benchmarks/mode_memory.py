"""Memory of a rank in each mode: what is held by kind, and the peak over the model, beside DDP's.

    python -m benchmarks.mode_memory [--ranks 2] [--output benchmarks/results/mode_memory.json]

16 layers with 64 MiB of parameters, Adam, three steps; each mode in fresh processes (Linux: the
peak is the kernel's, VmHWM).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from benchmarks.environment import describe_environment, write_json
from lightning_gradsched import GradientScheduler, GradSchedConfig

MIB = 2**20
WIDTH = 1024
N_LAYERS = 16
N_STEPS = 3
MODES: dict[str, dict[str, Any]] = {
    "ddp": {},
    "ddp_bucket_view": {"gradient_as_bucket_view": True},
    "gradsched": {},
    "overlap_forward": {"overlap_forward": True},
    "gradient_lag": {"gradient_lag": 1},
    "shard_optimizer": {"shard_optimizer": True},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--output", type=Path, help="write the JSON here (printed either way)")
    args = parser.parse_args()
    print(f"{'MiB':<16} {'parameters':>11} {'gradients':>11} {'optimizer':>11} {'peak':>11}")
    rows = {}
    for mode in MODES:
        with tempfile.TemporaryDirectory() as folder:
            mp.spawn(measure, args=(args.ranks, mode, folder), nprocs=args.ranks)
            ranks = [json.loads(Path(folder, f"{r}.json").read_text()) for r in range(args.ranks)]
        rows[mode] = {kind: max(rank[kind] for rank in ranks) for kind in ranks[0]}
        print(f"{mode:<16}" + "".join(f" {nbytes / MIB:>11.1f}" for nbytes in rows[mode].values()))
    if args.output:
        result = {"environment": describe_environment(), "n_ranks": args.ranks, "nbytes": rows}
        write_json(args.output, result)
        print(f"written to {args.output}")


def measure(rank: int, n_ranks: int, mode: str, folder: str) -> None:
    """Bytes of this rank, into a file of ``folder``; ``peak``: over the model alone."""
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", n_ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=n_ranks)
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(N_LAYERS)))
    before = _status_nbytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    optimizer = torch.optim.Adam(net.parameters())
    forward, scheduler = _attached(net, optimizer, mode)
    for _ in range(N_STEPS):
        optimizer.zero_grad()
        forward(torch.ones(8, WIDTH)).square().mean().backward()
        optimizer.step()
    held = {
        "parameters": sum(p.nbytes for p in net.parameters()),
        "gradients": _gradients_nbytes(net, scheduler, mode),
        "optimizer": sum(t.nbytes for state in optimizer.state.values() for t in state.values()),
        "peak": _status_nbytes("VmHWM") - before,
    }
    write_json(Path(folder, f"{rank}.json"), held)
    if scheduler is not None:
        scheduler.detach()
    dist.destroy_process_group()


def _attached(
    net: nn.Module, optimizer: Optimizer, mode: str
) -> tuple[nn.Module, GradientScheduler | None]:
    if mode.startswith("ddp"):
        return DistributedDataParallel(net, **MODES[mode]), None
    scheduler = GradientScheduler(net, GradSchedConfig(planner="ddp", **MODES[mode]))
    if mode == "overlap_forward":
        scheduler.overlap(optimizer)
    if mode == "shard_optimizer":
        scheduler.shard(optimizer)
    return net, scheduler


def _gradients_nbytes(net: nn.Module, scheduler: GradientScheduler | None, mode: str) -> int:
    """With the buckets that carry them; DDP's are as large as they, of which they may be views."""
    grads_nbytes = sum(p.nbytes for p in net.parameters())
    if scheduler is None:
        return grads_nbytes * (1 if mode == "ddp_bucket_view" else 2)
    buckets = scheduler._reducer.buckets
    return sum(bucket.flat.nbytes for bucket in buckets) * (2 if mode == "gradient_lag" else 1)


def _status_nbytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024


if __name__ == "__main__":
    main()

"""The engine without Lightning, in a plain PyTorch loop with gradient accumulation.

torchrun --nproc-per-node 2 examples/plain_loop.py
"""

from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch import nn

from lightning_gradsched import GradientScheduler, GradSchedConfig

ACCUMULATE = 2


def main() -> None:
    dist.init_process_group("gloo")
    torch.manual_seed(dist.get_rank())  # rank 0's weights are copied to the others
    model = nn.Sequential(nn.Linear(32, 256), nn.Tanh(), nn.Linear(256, 1))
    scheduler = GradientScheduler(model, GradSchedConfig(record_every_n_steps=5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    for _ in range(60):
        optimizer.zero_grad()
        for micro_batch in range(ACCUMULATE):
            x = torch.randn(64, 32)
            is_last = micro_batch == ACCUMULATE - 1
            with nullcontext() if is_last else scheduler.no_sync():
                loss = (model(x) - x.sum(1, keepdim=True)).square().mean() / ACCUMULATE
                loss.backward()
        optimizer.step()  # .grad is the mean over ranks here

    if dist.get_rank() == 0:
        print(f"loss {loss.item():.3f} after schedule {scheduler.schedule}")
        print(scheduler.report())
    scheduler.detach()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

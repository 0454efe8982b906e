"""A planner of your own is one function: here, groups that double in size.

torchrun --nproc-per-node 2 examples/own_planner.py
"""

import torch
import torch.distributed as dist
from torch import nn

from lightning_gradsched import GradientScheduler, GradSchedConfig
from lightning_gradsched.core.cost import CostModel
from lightning_gradsched.core.plan import GroupPlan
from lightning_gradsched.core.profile import BackwardProfile


def doubling(profile: BackwardProfile, cost: CostModel) -> GroupPlan:
    """Gradients in ready order, the first alone, then two, four, eight, ... together.

    ``cost.all_reduce_s(nbytes)`` would tell what a message costs on this network, and each
    parameter of the profile carries its nbytes, ready_s and needed_s.
    """
    names = [param.name for param in profile.params]
    groups, size = [], 1
    while names:
        groups.append(tuple(names[:size]))
        names, size = names[size:], 2 * size
    return GroupPlan("doubling", tuple(groups))


def main() -> None:
    dist.init_process_group("gloo")
    model = nn.Sequential(*[nn.Sequential(nn.Linear(128, 128), nn.GELU()) for _ in range(6)])
    config = GradSchedConfig(planner=doubling, record_every_n_steps=2)
    scheduler = GradientScheduler(model, config)
    for _ in range(30):
        model.zero_grad()
        model(torch.randn(32, 128)).square().mean().backward()
    if dist.get_rank() == 0:
        print(f"sizes {[len(group) for group in scheduler.plan.groups]}")
        print(scheduler.report())
    scheduler.detach()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

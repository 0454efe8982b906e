"""One rank of a job in which something goes wrong; see ``test_lost_ranks.py``.

    RANK=… WORLD_SIZE=… MASTER_ADDR=… MASTER_PORT=… python job.py FAULT RANK_AT_FAULT STALL_TIMEOUT_S
"""

from __future__ import annotations

import os
import signal
import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lightning_gradsched import GradientScheduler, GradSchedConfig

FAULTY_STEP = 3


def kill_in_backward(_grad: Tensor) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail_in_backward(_grad: Tensor) -> None:
    raise ZeroDivisionError("no such luck")


def go_wrong(fault: str, net: nn.Sequential) -> None:
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault == "kill_in_backward":
        net[1].weight.register_hook(kill_in_backward)
    elif fault == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif fault == "sleep":
        time.sleep(600)
    elif fault == "interrupt":
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(600)
    elif fault == "raise_in_forward":
        raise ZeroDivisionError("no such luck")
    elif fault == "raise_in_backward":
        net[1].weight.register_hook(fail_in_backward)
    elif fault == "leave":
        print("left", flush=True)
        sys.exit(0)


def main(fault: str, rank_at_fault: int, stall_timeout_s: float) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=120))
    is_at_fault = dist.get_rank() == rank_at_fault
    if is_at_fault and fault == "absent":
        time.sleep(600)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    config = GradSchedConfig(planner="per_tensor", stall_timeout_s=stall_timeout_s)
    scheduler = GradientScheduler(net, config)
    for step in range(1000):
        if is_at_fault and step == FAULTY_STEP:
            go_wrong(fault, net)
        net.zero_grad()
        net(torch.ones(2, 4)).square().sum().backward()
        if step == FAULTY_STEP - 1:
            print("running", flush=True)
        time.sleep(0.1 if fault == "link" else 0.0)
    scheduler.detach()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))

"""Counting a network's floating point operations without computing anything."""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode


def forward_flop(net: nn.Module, *inputs: Tensor) -> int:
    """Operations of one forward by torch's counter, which counts a multiply and an add as two.

    Only products of matrices and convolutions count, as usual. Runs on the meta device: no memory,
    no random numbers, no change to `net`, however large. A compiled net is counted uncompiled.

    >>> forward_flop(nn.Linear(3, 5), torch.empty(7, 3))
    210
    """
    tensors = {
        name: tensor.detach().to("meta")
        for name, tensor in chain(net.named_parameters(), net.named_buffers())
    }
    arguments = tuple(tensor.detach().to("meta") for tensor in inputs)
    eager = torch.compiler.set_stance("force_eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad(), eager:
        functional_call(net, tensors, arguments)
    return counter.get_total_flops()

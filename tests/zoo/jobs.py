"""What ranks run in the zoo's tests: apart from the tests, so that a rank imports little."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from zoo.loss.spectral_product import SpectralProduct
from zoo.net.mlp import MLP


def vectors_on(rank: int) -> list[Tensor]:
    """Vectors and weights after five steps with other data on each rank."""
    torch.manual_seed(0)
    net = MLP(12, 64, (8,))
    wrapped, term = DistributedDataParallel(net), SpectralProduct(0.1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for step in range(5):
        y = torch.randn(2, 12, generator=torch.Generator().manual_seed(10 * step + rank))
        loss = wrapped(y).square().mean() + term(net, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return [*term.state_dict().values(), *(p.detach() for p in net.parameters())]

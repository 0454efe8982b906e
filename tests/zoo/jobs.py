"""What ranks run in the zoo's tests: apart from the tests, so that a rank imports little."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from zoo.loss.spectral_product import SpectralProduct
from zoo.metric.iou import confusion_matrices, summarize
from zoo.metric.sample_scores import SampleScores
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


def iou_table_of_rank(
    rank: int, prediction: Tensor, labels: Tensor, shares: list[list[list[int]]]
) -> dict[str, float]:
    """Scores of all samples on each rank, which updated with its own batches of indices."""
    table = SampleScores(len(labels), 9)
    for indices in shares[rank]:
        matrices = confusion_matrices(prediction[indices], labels[indices], 3)
        table.update(torch.tensor(indices), matrices.flatten(1))
    names = ("background", "tropical_cyclone", "atmospheric_river")
    scores = summarize(table.compute().view(-1, 3, 3), names)
    return {name: float(value) for name, value in scores.items()}

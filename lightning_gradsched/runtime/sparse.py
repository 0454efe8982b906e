"""Which parameters get sparse gradients: known before the first one comes, as it is to DDP."""

from __future__ import annotations

from torch import nn


def sparse_parameters(module: nn.Module) -> frozenset[str]:
    """Qualified names of the weights of embeddings that were built with ``sparse=True``.

    A weight that several modules share is sparse if its first owner says so.
    """
    names = set()
    seen: set[int] = set()
    for prefix, child in module.named_modules():
        is_sparse = isinstance(child, (nn.Embedding, nn.EmbeddingBag)) and child.sparse
        for name, param in child.named_parameters(prefix, recurse=False):
            if is_sparse and id(param) not in seen:
                names.add(name)
            seen.add(id(param))
    return frozenset(names)

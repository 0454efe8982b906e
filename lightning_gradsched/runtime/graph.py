"""The order in which gradients become final, read off the autograd graph before it runs."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import Node

# The node that torch.utils.checkpoint(use_reentrant=True) leaves in the graph.
REENTRANT_CHECKPOINT = "CheckpointFunctionBackward"


# The node of a graph that torch.compile has made, which gives out all of its gradients at once.
COMPILED = "CompiledFunctionBackward"


class GraphWalk(NamedTuple):
    """``blocks`` of leaves in the order in which autograd will run them; each leaf once.

    What one compiled node gives out is one block; every other leaf is a block of its own.

    ``hides``: a re-entrant checkpoint is in the graph, whose own leaves are not met, and which may
    bring a leaf that is met a further gradient.
    """

    blocks: list[list[Tensor]]
    hides: bool

    @property
    def leaves(self) -> list[Tensor]:
        return list(chain.from_iterable(self.blocks))


def ready_order(roots: Iterable[Node]) -> GraphWalk:
    """Walk the graph from ``roots`` (``loss.grad_fn``) as autograd's engine will.

    The engine runs, among the nodes whose consumers are done, the one made last in forward; a
    leaf's accumulation goes first of all. Takes a few microseconds a node.
    """
    roots = list(dict.fromkeys(roots))
    missing = _consumer_counts(roots)
    heap: list[tuple[int, int, Node]] = []
    blocks: list[list[Tensor]] = []
    is_block_open = False  # whether the last node was a compiled one, or a leaf of one
    pushed = 0
    for root in roots:
        if missing[root] == 0:
            heapq.heappush(heap, (-root._sequence_nr(), pushed, root))
            pushed += 1
    while heap:
        node = heapq.heappop(heap)[-1]
        leaf = getattr(node, "variable", None)
        if isinstance(leaf, Tensor):
            if is_block_open:
                blocks[-1].append(leaf)
            else:
                blocks.append([leaf])
        elif is_block_open := node.name() == COMPILED:
            blocks.append([])
        for producer in _producers(node):
            missing[producer] -= 1
            if missing[producer] == 0:
                # Equal sequence numbers (leaves) leave the heap in the order in which they came.
                heapq.heappush(heap, (-producer._sequence_nr(), pushed, producer))
                pushed += 1
    blocks = [block for block in blocks if block]
    return GraphWalk(blocks, hides=any(node.name() == REENTRANT_CHECKPOINT for node in missing))


def _consumer_counts(roots: list[Node]) -> Counter[Node]:
    counts: Counter[Node] = Counter(dict.fromkeys(roots, 0))
    seen = set(roots)
    todo = list(roots)
    while todo:
        for producer in _producers(todo.pop()):
            counts[producer] += 1
            if producer not in seen:
                seen.add(producer)
                todo.append(producer)
    return counts


def _producers(node: Node) -> Iterator[Node]:
    return (producer for producer, _ in node.next_functions if producer is not None)


def accumulate_node(param: Tensor) -> Node:
    """The node that writes ``param.grad``; whoever holds it keeps it the same from step to step."""
    return torch.autograd.graph.get_gradient_edge(param).node


def will_run(node: Node) -> bool:
    """Whether the backward that is running now will reach ``node``. Only inside a hook."""
    return torch._C._will_engine_execute_node(node)

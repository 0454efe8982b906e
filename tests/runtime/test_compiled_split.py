"""Where compiled graphs are cut, in one process: by the pieces that a backend is given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.backends import distributed
from torch.nn.parallel import DistributedDataParallel

from lightning_gradsched.runtime.compiled_split import CompiledSplit
from lightning_gradsched.runtime.graph import ready_order

WIDTH = 4
Groups = list[list[str]]


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.middle, self.head = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.middle(torch.tanh(self.stem(x)))))


class Engine:
    """What the engine says of groups."""

    def __init__(self, net: nn.Module, groups: Groups) -> None:
        self.groups = groups
        self.asked: list[list[str]] = []
        self.split = CompiledSplit(self.groups_in)
        self.split.attach(dict(net.named_parameters()))

    def groups_in(self, order: Sequence[str]) -> Groups:
        self.asked.append(list(order))
        return self.groups


class Pieces:
    """A backend that counts what it is given, and runs it as it is."""

    def __init__(self) -> None:
        self.graphs: list[torch.fx.GraphModule] = []

    def __call__(self, graph: torch.fx.GraphModule, _inputs: Any) -> Any:
        self.graphs.append(graph)
        return graph.forward

    def weights(self) -> list[int]:
        """How many weights each piece is given."""
        return [
            sum("weight" in node.name for node in graph.graph.find_nodes(op="placeholder"))
            for graph in self.graphs
        ]


@pytest.fixture(autouse=True)
def torch_as_found() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
    assert DistributedDataParallel._active_ddp_module is None
    assert distributed.DDPOptimizer.__module__ == distributed.__name__


HEAD_FIRST = [["head.weight"], ["middle.weight", "stem.weight"]]


def pieces(net: nn.Module, groups: Groups, **options: Any) -> list[int]:
    backend, engine = Pieces(), Engine(net, groups)
    try:
        torch.compile(net, backend=backend, **options)(torch.ones(2, WIDTH))
    finally:
        engine.split.detach()
    return backend.weights()


@pytest.mark.parametrize(
    ("groups", "weights"),
    [
        (HEAD_FIRST, [2, 1]),
        ([["head.weight"], ["middle.weight"], ["stem.weight"]], [1, 1, 1]),
        ([["head.weight", "middle.weight", "stem.weight"]], [3]),
        # One that is whole only at the end has nothing to be cut for.
        ([["head.weight", "stem.weight"], ["middle.weight"]], [1, 2]),
    ],
)
@pytest.mark.parametrize("fullgraph", [False, True])
def test_a_graph_is_cut_where_groups_end(
    groups: Groups, weights: list[int], fullgraph: bool
) -> None:
    assert pieces(Chain(), groups, fullgraph=fullgraph) == weights


def test_the_groups_are_asked_for_in_the_order_of_backward() -> None:
    net = Chain()
    engine = Engine(net, HEAD_FIRST)
    torch.compile(net, backend="eager")(torch.ones(2, WIDTH))
    engine.split.detach()
    assert engine.asked == [["head.weight", "middle.weight", "stem.weight"]]


class Tied(nn.Module):
    """The weight that is used first and last is ready last."""

    def __init__(self) -> None:
        super().__init__()
        self.ends, self.middle = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.ends(torch.tanh(self.middle(torch.tanh(self.ends(x)))))


def test_a_tied_weight_is_ready_where_it_is_first_used() -> None:
    assert pieces(Tied(), [["middle.weight"], ["ends.weight"]]) == [1, 2]
    assert pieces(Tied(), [["ends.weight"], ["middle.weight"]]) == [1, 2]


class Methods(Chain):
    """Weights that are used by methods, by keyword, and where no gradient is taken."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            scale = self.head.weight.abs().mean()
        x = torch.tanh(x.matmul(self.stem.weight.t()) * scale)
        x = torch.tanh(F.linear(x, weight=self.middle.weight))
        return x.matmul(self.head.weight.t())


def test_uses_are_seen_however_they_are_written() -> None:
    net = Methods()
    engine, backend = Engine(net, HEAD_FIRST), Pieces()
    y = torch.compile(net, backend=backend)(torch.ones(2, WIDTH))
    engine.split.detach()
    assert engine.asked == [["head.weight", "middle.weight", "stem.weight"]]
    assert len(backend.graphs) == 2
    torch.testing.assert_close(y, net(torch.ones(2, WIDTH)))


def test_what_leaves_no_gradients_is_left_whole() -> None:
    net, backend = Chain(), Pieces()
    engine = Engine(net, HEAD_FIRST)
    with torch.no_grad():
        torch.compile(net, backend=backend)(torch.ones(2, WIDTH))
    engine.split.detach()
    assert backend.weights() == [3]


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")
def test_a_compiled_optimizer_is_left_whole() -> None:
    net, backend = Chain(), Pieces()
    engine = Engine(net, HEAD_FIRST)
    optimizer = torch.optim.SGD(net.parameters(), lr=torch.tensor(0.1), foreach=False)
    net(torch.ones(2, WIDTH)).sum().backward()
    before = net.head.weight.detach().clone()
    torch.compile(optimizer.step, backend=backend)()
    engine.split.detach()
    assert len(backend.graphs) == 1
    assert not torch.equal(net.head.weight, before)


def test_modules_of_others_are_left_whole() -> None:
    ours, theirs, backend = Chain(), Chain(), Pieces()
    engine = Engine(ours, HEAD_FIRST)
    torch.compile(theirs, backend=backend)(torch.ones(2, WIDTH))
    engine.split.detach()
    assert backend.weights() == [3]
    assert engine.asked == []


def test_two_engines_cut_the_graph_that_both_are_in() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = Chain(), Chain()

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.tanh(self.a(x)))

    net, backend = Both(), Pieces()
    engines = [Engine(net.a, HEAD_FIRST), Engine(net.b, HEAD_FIRST)]
    torch.compile(net, backend=backend)(torch.ones(2, WIDTH))
    for engine in engines:
        engine.split.detach()
    assert backend.weights() == [2, 3, 1]  # nothing is to be cut between the two


def test_a_plan_that_ends_other_groups_is_followed_once() -> None:
    net, backend = Chain(), Pieces()
    engine = Engine(net, HEAD_FIRST)
    run = torch.compile(net, backend=backend)
    for groups in (HEAD_FIRST, HEAD_FIRST, [["head.weight", "middle.weight"], ["stem.weight"]]):
        engine.groups = groups
        engine.split.follow(groups)
        run(torch.ones(2, WIDTH))
    engine.split.detach()
    assert backend.weights() == [2, 1, 1, 2]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.tanh(self.up(x)))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_graph_that_blocks_share_is_left_whole_once_that_is_seen() -> None:
    net = nn.Sequential(nn.Linear(WIDTH, WIDTH), Block(), Block())
    params = dict(net.named_parameters())
    engine = Engine(net, [[name for name in params if ".down." in name]])
    for block in net[1:]:
        block.compile(backend="aot_eager")
    names = {id(param): name for name, param in params.items()}

    def blocks() -> list[list[str]]:
        walk = ready_order([net(torch.ones(2, WIDTH)).sum().grad_fn])
        return [[names[id(leaf)] for leaf in block] for block in walk.blocks]

    cut = blocks()
    assert [len(block) for block in cut] == [2, 2, 2, 2, 1, 1], "cut for the first, so for both"
    engine.split.saw(cut, engine.groups)
    whole = blocks()
    assert [len(block) for block in whole] == [4, 4, 1, 1]
    first, second = (engine.split.in_order(block) for block in (whole[1], whole[0]))
    assert first == ["1.down.weight", "1.down.bias", "1.up.weight", "1.up.bias"]
    assert second == ["2.down.bias", "2.down.weight", "2.up.bias", "2.up.weight"]
    engine.split.detach()


def test_what_is_compiled_before_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    engine = Engine(Chain(), HEAD_FIRST)
    for _ in range(2):
        engine.split.saw([["stem.weight", "middle.weight", "head.weight"]], HEAD_FIRST)
    engine.split.detach()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "before the engine was made" in caplog.text


def test_an_engine_that_is_gone_cuts_nothing() -> None:
    net, backend = Chain(), Pieces()
    engine = Engine(net, HEAD_FIRST)
    del engine
    torch.compile(net, backend=backend)(torch.ones(2, WIDTH))
    assert backend.weights() == [3]
    CompiledSplit(Chain().forward).detach()

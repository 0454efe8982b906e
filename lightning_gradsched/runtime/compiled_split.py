"""Has torch.compile cut a graph where groups end, so that gradients come while backward runs.

[Note: compiled backwards] Of one compiled graph autograd sees one node, which gives out all of its
gradients when all are computed: no group could leave before. Torch cuts the graphs of DDP's
forwards for that reason (``DDPOptimizer``): each piece is compiled for itself, and its backward is
a node of its own. Torch asks one class attribute whether a frame that it compiles is in such a
forward, and cuts by bytes. While an engine is attached that attribute holds ``_FLAG``, and a
subclass of torch's optimizer cuts where the engine's groups end. The frames of real DDP modules are
cut as ever, those without parameters of an engine, or without gradients, are left whole.

Until a plan is settled graphs are cut into pieces about alike; when it is, what was cut elsewhere
is compiled once more. Blocks of one class that are compiled each for itself share one graph: a cut
for one would be a cut in all, so they are left whole.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import CodeType
from typing import Any, NamedTuple
from weakref import WeakMethod, WeakSet

import torch
from torch import Tensor, fx
from torch._C._dynamo.eval_frame import reset_code
from torch._dynamo.backends import distributed
from torch._dynamo.symbolic_convert import InstructionTranslator
from torch.nn.parallel import DistributedDataParallel

from lightning_gradsched.core.segments import segment_ends

log = logging.getLogger("lightning_gradsched")

# Of these parameters, in ready order, the groups.
Groups = Callable[[Sequence[str]], Iterable[Sequence[str]]]
_NEVER = sys.maxsize  # bytes at which torch would cut by itself


class CompiledGraph(NamedTuple):
    """One that torch has compiled: ``order`` of its gradients, after which it was to be cut."""

    code: CodeType
    order: tuple[str, ...]
    ends: tuple[int, ...]


class CompiledSplit:
    """Of one engine. ``groups``, a method, says where the graphs of its parameters are to be cut.

    All that is compiled between ``attach`` and ``detach`` is cut; local to this rank.
    """

    def __init__(self, groups: Groups) -> None:
        self._groups = WeakMethod(groups)
        self._names: dict[int, str] = {}  # by the parameters' ids
        self._is_shared = False  # blocks with other parameters run a graph of these
        self._has_warned = False
        self._place: dict[str, int] = {}  # in the order of the graph that has it
        self.graphs: list[CompiledGraph] = []

    def attach(self, params: Mapping[str, Tensor]) -> None:
        """From now on these are the engine's parameters."""
        self._names = {id(param): name for name, param in params.items()}
        _LIVE.add(self)
        _TORCH.DDPOptimizer = _PlannedOptimizer
        if _DDP._active_ddp_module is None:
            _DDP._active_ddp_module = _FLAG

    def detach(self) -> None:
        _LIVE.discard(self)
        if not _LIVE:
            _TORCH.DDPOptimizer = _TorchsOptimizer
            if _DDP._active_ddp_module is _FLAG:
                _DDP._active_ddp_module = None

    def cuts(self, uses: Mapping[int, int]) -> list[int]:
        """Of a graph that is being compiled: the nodes before which to cut.

        ``uses``: the first node that uses each parameter, by their ids.
        """
        used = sorted((uses[key], name) for key, name in self._names.items() if key in uses)
        groups = self._groups()
        if not used or groups is None:
            return []
        first_use, order = zip(*reversed(used), strict=True)
        ends = self._ends(order, groups(order))
        code = InstructionTranslator.current_tx().output.root_tx.f_code
        self.graphs.append(CompiledGraph(code, order, ends))
        self._place.update((name, i) for i, name in enumerate(order))
        return [first_use[end] for end in ends]

    def saw(self, blocks: Sequence[Sequence[str]], groups: Sequence[Sequence[str]]) -> None:
        """What a backward gives out at once, and the groups in force."""
        compiled = {name for block in blocks if len(block) > 1 for name in block}
        if self._place and compiled - self._place.keys():
            self._is_shared = True
            self.follow(groups)
        if not self._place and any(segment_ends(block, groups) for block in blocks):
            self._warn()

    def follow(self, groups: Sequence[Sequence[str]]) -> None:
        """These are settled: have compiled anew, when it next runs, what is cut elsewhere."""
        stale = {g.code for g in self.graphs if self._ends(g.order, groups) != g.ends}
        for code in stale:
            log.info("torch compiles %s anew, cut where the plan's groups end", code.co_name)
            reset_code(code)
        self.graphs = [graph for graph in self.graphs if graph.code not in stale]

    def _ends(self, order: Sequence[str], groups: Iterable[Sequence[str]]) -> tuple[int, ...]:
        return () if self._is_shared else segment_ends(order, groups)

    def _warn(self) -> None:
        if not self._has_warned:
            self._has_warned = True
            log.warning(
                "a graph of torch.compile's gives out the gradients of several groups at once, so"
                " none is sent while its backward runs. It was compiled before the engine was made,"
                " or with torch._dynamo.config.optimize_ddp=False: make the engine before the first"
                " forward, or call torch._dynamo.reset() after."
            )

    def in_order(self, block: Sequence[str]) -> list[str]:
        """What one node gives out at once, in the order in which its parts would have it."""
        if not self._names:  # one rank: nothing is cut, and no order is to be agreed on
            return list(block)
        last = len(self._names)
        registered = {name: i for i, name in enumerate(self._names.values())}
        return sorted(block, key=lambda name: (self._place.get(name, last), -registered[name]))


_LIVE: WeakSet[CompiledSplit] = WeakSet()
# Where torch looks, with what it finds there replaced while an engine is attached.
_TORCH: Any = distributed
_DDP: Any = DistributedDataParallel
_TorchsOptimizer = distributed.DDPOptimizer


class _Flag:
    """What torch takes for a DDP module whose forward runs."""

    bucket_bytes_cap = _NEVER

    def __bool__(self) -> bool:
        return bool(_LIVE) and torch.is_grad_enabled()


_FLAG = _Flag()


class _PlannedOptimizer(_TorchsOptimizer):
    """Torch's walks a graph backwards, and cuts where a bucket's size has come to the cap."""

    def __init__(self, bucket_bytes_cap: int, backend_compile_fn: Any) -> None:
        self._is_planned = bucket_bytes_cap == _NEVER
        first_cap = _NEVER if self._is_planned else None
        super().__init__(bucket_bytes_cap, backend_compile_fn, first_cap)

    def compile_fn(self, gm: fx.GraphModule, example_inputs: list[Tensor], **config: Any) -> Any:
        if self._is_planned:
            self._number = {node: i for i, node in enumerate(gm.graph.nodes)}
            uses = _first_uses(gm, example_inputs)
            self._used = set(uses.values())
            self._cuts = sorted(cut for split in _LIVE for cut in split.cuts(uses))
        return super().compile_fn(gm, example_inputs, **config)

    def add_param_args(self, bucket: distributed.Bucket, node: fx.Node) -> None:
        if not self._is_planned:
            super().add_param_args(bucket, node)
            return
        number = self._number[node]
        bucket.size += number in self._used  # one that has no parameters is no piece
        # Torch calls this not for every node: the cut may come a node later.
        while self._cuts and number <= self._cuts[-1]:
            self._cuts.pop()
            bucket.size = self.bucket_bytes_cap


def _first_uses(gm: fx.GraphModule, inputs: Sequence[Any]) -> dict[int, int]:
    """Which node first uses each tensor in a way that leaves gradients; by the tensors' ids."""
    given: dict[fx.Node, Any] = dict(
        zip(gm.graph.find_nodes(op="placeholder"), inputs, strict=False)
    )
    uses: dict[int, int] = {}
    has_gradients = True
    for number, node in enumerate(gm.graph.nodes):
        if node.target is torch._C._set_grad_enabled:
            has_gradients = node.args[0]
        elif node.op == "get_attr":
            given[node] = getattr(gm, str(node.target), None)
        elif node.op != "output" and has_gradients:
            for source in node.all_input_nodes:
                if source in given:
                    uses.setdefault(id(given[source]), number)
    return uses

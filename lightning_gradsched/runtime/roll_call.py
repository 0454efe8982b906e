"""Which ranks are there: asked and answered over the process group's store, by no collective.

[Note: the roll call] A rank that misses others raises a counter in the store. A thread on every
rank looks at it each ``period_s``; where it has risen, the rank writes what it is doing. Whoever
has not written after ``patience_s`` is dead or stopped, or its link is down: a rank that merely
computes, sleeps or waits has its thread and answers. A rank whose engine ends leaves its reason as
its last answer. As long as nobody calls, a rank's traffic is one small request a period.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import monotonic, sleep
from typing import NamedTuple

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store

# How often a rank looks at the store while it waits for answers.
LOOKS = 8
# A called rank writes a line; one of very many need not read all others' as well.
MOST_LISTENERS = 128


class Answer(NamedTuple):
    """What a rank wrote last. ``call``: which one it answers."""

    call: int
    n_issued: int  # collectives that it has begun
    doing: str
    remark: str = ""
    has_ended: bool = False


@dataclass(frozen=True, slots=True)
class Findings:
    """What a roll call brought. Ranks are numbered as in the whole job."""

    answers: dict[int, Answer] = field(default_factory=dict)
    silent: tuple[int, ...] = ()
    absent: tuple[int, ...] = ()  # have not joined yet
    store_fault: str = ""  # why the store could not be asked to the end

    def text(self, n_issued: int) -> str:
        """In sentences, for a rank that has begun ``n_issued`` collectives itself."""
        ended = {r: a for r, a in self.answers.items() if a.has_ended}
        behind = {r: a for r, a in self.answers.items() if a.n_issued < n_issued and r not in ended}
        said = [f"Rank {rank} has ended: {a.doing}." for rank, a in ended.items()]
        if self.silent:
            said.append(
                f"{_ranks(self.silent)} not answer: the process has died or is stopped, or its"
                " link is down."
            )
        said += [
            f"Rank {r} is alive but has not come so far: {a.doing}." for r, a in behind.items()
        ]
        if self.absent:
            said.append(f"{_ranks(self.absent)} not have a GradientScheduler yet.")
        if self.store_fault:
            said.append(
                "Not all could be asked: the process group's store, which rank 0 or its launcher"
                f" hosts, does not answer: {self.store_fault.rstrip('.')}. Suspect these, or this"
                " rank's own link."
            )
        return " ".join(said) or (
            "All other ranks answer and have come as far: suspect the network between them."
        )

    @property
    def blames(self) -> bool:
        """Whether some rank is missing for good."""
        return bool(self.silent or self.absent) or any(a.has_ended for a in self.answers.values())


def _ranks(ranks: Sequence[int]) -> str:
    if len(ranks) == 1:
        return f"Rank {ranks[0]} does"
    return f"Ranks {', '.join(map(str, ranks[:16]))}{', …' if len(ranks) > 16 else ''} do"


class RollCall:
    """One rank's part in it. For one thread only: a store that hangs takes the thread with it.

    Nothing raises where the store is lost: ``fault`` says why from then on, and no more is asked.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        ranks: Sequence[int],
        status: Callable[[], tuple[int, str, str]],
    ) -> None:
        self._store = store
        self._rank = rank
        self._others = [other for other in ranks if other != rank]
        self._status = status
        self._answered = 0
        self.fault = ""

    def join(self) -> None:
        """Be one of those that are called."""
        self._try(lambda: self._write(Answer(0, *self._status())))

    def end(self, why: str) -> None:
        """Leave a last answer, to all calls to come; the remark stands in it."""
        n_issued, _, remark = self._status()
        self._try(lambda: self._write(Answer(0, n_issued, why, remark, has_ended=True)))

    def answer(self) -> bool:
        """Write this rank's status if somebody has called; whether it was so."""
        before = self._answered
        self._try(self._answer)
        return self._answered > before

    def call(self, patience_s: float) -> Findings:
        """Ask all others, and wait until they have answered or ``patience_s`` is over."""
        self._try(lambda: self._store.add("calls", 1))
        return self.listen(patience_s)

    def listen(self, patience_s: float) -> Findings:
        """The answers to the last call, whoever made it."""
        written: dict[int, Answer] = {}
        answers: dict[int, Answer] = {}
        until_s = monotonic() + patience_s
        heard_most = False

        def hear() -> None:
            nonlocal written, answers, heard_most
            call = self._answer()
            while len(answers) < len(self._others) and monotonic() < until_s:
                sleep(patience_s / LOOKS)
                self._answer()
                written = self._read()
                answers = {r: a for r, a in written.items() if a.has_ended or a.call >= call}
                heard_most = monotonic() > until_s - patience_s / 2

        self._try(hear)
        if self.fault and not heard_most:
            return Findings(answers, store_fault=self.fault)
        silent = tuple(rank for rank in written if rank not in answers)
        absent = tuple(rank for rank in self._others if rank not in written)
        return Findings(answers, silent, absent, self.fault)

    @property
    def listens(self) -> bool:
        """Whether to hear the answers to another's call as well.

        The store may end with its host before this rank has cause to ask for itself.
        """
        return len(self._others) < MOST_LISTENERS

    def _try(self, ask_store: Callable[[], object]) -> None:
        if self.fault:
            return
        try:
            ask_store()
        except RuntimeError as error:
            self.fault = first_line(error)

    def _answer(self) -> int:
        """The last call's number, which this rank has answered then."""
        call = self._store.add("calls", 0)
        if call > self._answered:
            self._write(Answer(call, *self._status()))
            self._answered = call
        return call

    def _read(self) -> dict[int, Answer]:
        """Each other rank's last answer, of those that have written any."""
        keys = {rank: f"answer/{rank}" for rank in self._others}
        if not self._store.check(list(keys.values())):
            keys = {rank: key for rank, key in keys.items() if self._store.check([key])}
        texts = self._store.multi_get(list(keys.values())) if keys else []
        return {rank: Answer(*json.loads(text)) for rank, text in zip(keys, texts, strict=True)}

    def _write(self, answer: Answer) -> None:
        self._store.set(f"answer/{self._rank}", json.dumps(answer))


def open_store(group: dist.ProcessGroup | None, rank: int) -> Store | None:
    """The store of the default process group, under a name of this engine's; None if there is none.

    All ranks of ``group`` must open as many, in the same order.
    """
    # Private, but what every start of a process group goes through.
    default = getattr(dist.distributed_c10d, "_get_default_store", None)
    if default is None:
        return None
    group = group or dist.group.WORLD
    assert group is not None, "made only once there is a process group"
    store: Store = PrefixStore(f"gradsched/{group.group_name}", default())
    if hasattr(store, "clone"):
        # A connection of its own: requests of one client wait for one another.
        store = store.clone()
    return PrefixStore(str(store.add(f"engines/{rank}", 1)), store)


def first_line(error: BaseException) -> str:
    """Of its text, at most 200 characters."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]

"""Runs a function on several real ranks: gloo processes, joined by a file, bounded in time."""

from __future__ import annotations

import multiprocessing as mp
import os
import pickle
import re
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from time import monotonic
from typing import Any

import torch
import torch.distributed as dist

from lightning_gradsched.runtime import calibration
from tests import measured

# forkserver: a fork of one warm process takes a tenth of a second where spawn takes many. What it
# has not imported, every rank of every test would.
_CONTEXT = mp.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "torch",
        "torch.distributed",
        "lightning.pytorch",
        "pytest",
        "lightning_gradsched.strategy",
        "lightning_gradsched.fabric",
        "tests.parity.nets",
        "tests.ranks",
    ]
)
# Sizes by which an engine under test calibrates: enough for a plan, and done in hundredths of a
# second. Tests of the calibration itself measure all.
FEW_SIZES = 4
ALL_SIZES = calibration.LADDER_NBYTES
# The group's own limit comes before a rank is killed: its traceback says where it waited.
_GROUP_TIMEOUT_S, _BEFORE_KILL_S = 40.0, 20.0


class RankError(AssertionError):
    """A rank failed or hung; holds every rank's traceback, and what each raised by its text."""


def run_ranks(
    n_ranks: int, function: Callable[..., Any], *args: Any, timeout_s: float = 60.0
) -> list[Any]:
    """What ``function(rank, *args)`` returned on each rank, in a gloo group of ``n_ranks``.

    Raises ``RankError`` with the traceback of each rank that raised, and the number of each that
    had not ended after ``timeout_s``; those are killed.
    """
    results = outcomes_of_ranks(n_ranks, function, *args, timeout_s=timeout_s)
    failures = [f"rank {rank}: {r[1]}" for rank, r in enumerate(results) if r[0] != "returned"]
    if failures:
        raise RankError("\n".join(failures))
    return [value for _, value in results]


def outcomes_of_ranks(
    n_ranks: int, function: Callable[..., Any], *args: Any, timeout_s: float = 60.0
) -> list[tuple[str, Any]]:
    """As ``run_ranks``, but how each rank ended, where some are meant to fail.

    ("returned", value), ("raised", traceback), ("died", text) or ("hung", text), by rank.
    """
    with tempfile.TemporaryDirectory() as folder:
        group_timeout_s = max(_GROUP_TIMEOUT_S, timeout_s - _BEFORE_KILL_S)
        joined_by = (n_ranks, folder, group_timeout_s)
        ranks = [_start(rank, joined_by, function, args) for rank in range(n_ranks)]
        results = _collect(ranks, timeout_s)
    measured.ranks_took_s = max((seconds for *_, seconds in results), default=0.0)
    return [(how, value) for how, value, _ in results]


def errors_of_ranks(n_ranks: int, function: Callable[..., Any], *args: Any) -> list[str]:
    """The message that ``function`` raised on each rank; fails if one returned."""
    errors = run_ranks(n_ranks, _error_of, function, *args)
    measured.record(errors[0])
    return errors


def names_silent(rank: int, text: str) -> bool:
    """Whether ``text`` says that ``rank`` does not answer: alone, or with others.

    A live rank may answer too late where the machine is loaded, and is then named as well.
    """
    silent = rf"Ranks? (?:\d+, )*{rank}(?:, \d+)* do(?:es)? not answer"
    return re.search(silent, text) is not None


def tell(what: str) -> None:
    """From within a rank: end the others' waits in ``until_told``; no collective."""
    _default_store().set(f"told/{what}", "")


def until_told(what: str) -> None:
    """From within a rank: wait until some rank has said ``what``, while this one's threads live."""
    _default_store().wait([f"told/{what}"], timedelta(seconds=_GROUP_TIMEOUT_S))


def _default_store() -> dist.Store:
    store: dist.Store = dist.distributed_c10d._get_default_store()
    return store


def _error_of(rank: int, function: Callable[..., Any], *args: Any) -> str:
    try:
        value = function(rank, *args)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    raise AssertionError(f"expected an error, got {value!r}")


def _start(
    rank: int,
    joined_by: tuple[int, str, float],
    function: Callable[..., Any],
    args: tuple[Any, ...],
) -> tuple[Any, Connection]:
    receiver, sender = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(
        target=_main, args=(rank, *joined_by, sender, function, args), daemon=True
    )
    process.start()
    sender.close()
    return process, receiver


def _collect(ranks: list[tuple[Any, Connection]], timeout_s: float) -> list[tuple[str, Any, float]]:
    """How each rank ended, with what, and after how many seconds of its function."""
    results: list[tuple[str, Any, float]] = []
    deadline = monotonic() + timeout_s
    for process, receiver in ranks:
        if wait([receiver], max(0.0, deadline - monotonic())):
            try:
                results.append(pickle.loads(receiver.recv_bytes()))
            except EOFError:
                process.join()
                results.append(("died", f"died with exit code {process.exitcode}", 0.0))
        else:
            results.append(("hung", f"had not ended after {timeout_s} s; killed", 0.0))
    for process, _ in ranks:
        process.join(timeout=5)
        process.kill()
    return results


def _main(
    rank: int,
    n_ranks: int,
    folder: str,
    group_timeout_s: float,
    sender: Connection,
    function: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    torch.set_num_threads(1)
    calibration.LADDER_NBYTES = ALL_SIZES[:FEW_SIZES]
    os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    store = dist.FileStore(os.path.join(folder, "store"), n_ranks)
    timeout = timedelta(seconds=group_timeout_s)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=n_ranks, timeout=timeout)
    start_s = monotonic()
    try:
        # By value: torch would share a tensor's memory with a process that is about to end.
        outcome = pickle.dumps(("returned", function(rank, *args), monotonic() - start_s))
    except BaseException:
        outcome = pickle.dumps(("raised", traceback.format_exc(), monotonic() - start_s))
    sender.send_bytes(outcome)
    dist.destroy_process_group()

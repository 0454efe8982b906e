"""The options alone: what they do on a GPU was not run, for want of one."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch.distributed as dist

from lightning_gradsched.runtime.collectives import high_priority

TIMEOUT = timedelta(seconds=7)


class Options:
    """Has the fields that torch's own sets, with its defaults."""

    is_high_priority_stream = False
    _timeout = timedelta(minutes=10)


def test_nccl_gets_a_stream_of_high_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    if not dist.is_nccl_available():
        nccl = SimpleNamespace(Options=Options)
        monkeypatch.setattr(dist, "ProcessGroupNCCL", nccl, raising=False)
    options = high_priority("nccl", TIMEOUT)
    assert options.is_high_priority_stream
    assert options._timeout == TIMEOUT


def test_gloo_has_no_streams() -> None:
    assert high_priority("gloo", TIMEOUT) is None

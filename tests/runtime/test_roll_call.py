"""What ranks learn of one another over a store, without a process group."""

from __future__ import annotations

import torch.distributed as dist

from lightning_gradsched.runtime.roll_call import RollCall


def test_a_rank_that_has_ended_still_says_what_it_sent() -> None:
    """It raises by itself, and may be gone before the others ask."""
    store = dist.HashStore()
    ours = RollCall(store, 0, [0, 1], lambda: (3, "waiting", ""))
    theirs = RollCall(store, 1, [0, 1], lambda: (3, "in backward", "gradients of bias"))
    for roll_call in (ours, theirs):
        roll_call.join()
    theirs.end("it raised")
    answer = ours.call(patience_s=0.5).answers[1]
    assert answer.has_ended
    assert (answer.doing, answer.remark) == ("it raised", "gradients of bias")

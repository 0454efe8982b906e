"""What ranks tell one another at the end of a step, at no cost: by bits that ride with gradients.

[Note: signals] The last group of every backward carries, behind its gradients and counts, one
number a signal: one on a rank that says it and zero on others. After the reduction every rank sees
whether any rank has said it, and all see the same: so they may begin a collective together, of
which only some ranks know that it is due. What a rank must say to deny, is a signal of its own:
"all say it" is "none denies it", as a sum of shares in a narrow dtype is not exact, but never zero.

Where a rank was cut off in its backward, that group may be NaN. Then nothing was signalled: what
still holds is said again in the next step.
"""

from __future__ import annotations

from enum import IntEnum


class Signal(IntEnum):
    """Its value is its place behind the counts."""

    UNFROZEN = 0  # a parameter that was frozen trains now
    PLANS = 1  # after this backward comes an agreement on another plan or schedule
    KEEPS = 2  # none comes
    NOTICE = 3  # who uses the engine has something to tell to all ranks; see runtime/notice.py


N_SIGNALS = len(Signal)

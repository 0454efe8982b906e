"""Two steps in a row, so that one sees what of the first goes on while the second computes."""

from __future__ import annotations

from collections.abc import Iterator

from lightning_gradsched.core.report import BACKWARD, BETWEEN, step_s_of
from lightning_gradsched.core.timeline import COMPUTE, Span, Timeline


def two_steps(step: Timeline) -> Timeline:
    """A simulated step and the next one, which is its like: ``k`` and ``k+1``.

    The groups of the second have a dash behind their numbers.

    >>> spans = (
    ...     Span("compute", BACKWARD, 0, 2),
    ...     Span("compute", BETWEEN, 2, 3),
    ...     Span("communication", "0", 1, 3),
    ... )
    >>> for span in two_steps(Timeline(spans)).spans:
    ...     print(*span)
    compute backward k 0.0 2.0
    compute forward k+1 2.0 3.0
    communication 0 1.0 3.0
    compute backward k+1 3 5
    compute forward k+2 5 6
    communication 0' 4 6
    """
    period_s = step_s_of(step)
    return Timeline((*_named(step, 0, 0.0, period_s), *_named(step, 1, period_s, period_s)))


def _named(step: Timeline, number: int, shift_s: float, period_s: float) -> Iterator[Span]:
    """``number`` of the step; what is of the next one, for which a step with lag lasts, is not.

    In its own backward such a step has waited at the end for the groups of the one before.
    """
    backward_s = min(s.end_s - s.start_s for s in step.spans if s.label == BACKWARD)
    for span in step.spans:
        label, end_s = span.label, span.end_s
        if span.track != COMPUTE:
            label += "'" * number
        elif label == BACKWARD and span.start_s >= period_s:
            if number == 0:
                continue
            label = f"{BACKWARD} {_step(number + 1)}"
        elif label == BACKWARD:
            label, end_s = f"{BACKWARD} {_step(number)}", span.start_s + backward_s
        elif label == BETWEEN:
            label = f"forward {_step(number + (span.start_s >= 0))}"
        yield Span(span.track, label, span.start_s + shift_s, end_s + shift_s)


def _step(number: int) -> str:
    return f"k+{number}" if number else "k"

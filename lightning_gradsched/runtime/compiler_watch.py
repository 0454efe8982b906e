"""Whether torch compiles anything in this process."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from typing import Any

from torch._dynamo.callback import callback_handler
from torch._dynamo.utils import counters

log = logging.getLogger("lightning_gradsched")


def has_compiled() -> bool:
    return bool(counters["frames"])


class CompilerWatch:
    """``before``, a method, is called before torch compiles for the first time.

    ``mode`` and ``instead`` tell the user which setting has no effect then, and what is done.

    What a compiled graph reads it asks nobody for, and torch does not say which graph reads what.
    """

    def __init__(self, before: Callable[[], None], mode: str, instead: str) -> None:
        self._mode, self._instead = mode, instead
        self._before = weakref.WeakMethod(before)
        self._has_begun = has_compiled()
        self._is_told = False
        callback_handler.register_start_callback(self._begins)

    @property
    def has_begun(self) -> bool:
        if self._has_begun and not self._is_told:
            self._is_told = True
            log.warning(
                "%s: torch.compile is in use, so nothing is left to the next forward: %s",
                self._mode,
                self._instead,
            )
        return self._has_begun

    def detach(self) -> None:
        if self._begins in callback_handler.start_callbacks:
            callback_handler.remove_start_callback(self._begins)

    def _begins(self, *_: Any) -> None:
        self._has_begun = True
        before = self._before()
        if before is not None:
            before()

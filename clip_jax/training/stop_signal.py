"""Stopping after the current step, on Ctrl-C or when the machine shuts down."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopSignal:
    """Records Ctrl-C and SIGTERM, so that training stops after the current step.

    A Ctrl-C after either of them stops at once. A second SIGTERM does not: when a machine shuts
    down, both the system and the launcher of a process send one.

    Attributes:
      number: the number of the recorded signal; 0: none so far.
    """

    def __init__(self) -> None:
        self.number = 0

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.number and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = self.number or number

    @contextmanager
    def watching(self) -> Iterator[StopSignal]:
        """Handles the two signals until the block ends."""
        previous = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

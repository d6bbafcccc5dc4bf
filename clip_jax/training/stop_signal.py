"""The wish to stop, from the keyboard or from a machine that shuts down."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopSignal:
    """Ctrl-C and SIGTERM as a wish to stop after the step; a Ctrl-C after it stops at once.

    Another SIGTERM is the same wish: a machine that shuts down tells a process, and so does the
    launcher of that process.
    """

    def __init__(self) -> None:
        self.number = 0

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.number and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = self.number or number

    @contextmanager
    def watching(self) -> Iterator[StopSignal]:
        """Takes the two signals over while it lasts."""
        before = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

"""Ctrl-C and SIGTERM as requests that the batch looks at, not exceptions that cut through its work."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Counts requests to stop while in its context.

    The first Ctrl-C asks to start nothing new, a second one or SIGTERM to stop at once.
    """

    def __init__(self) -> None:
        self.signal = 0
        """Number of the signal that asked; 0: none did."""
        self.now = False
        """Whether to stop at once."""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():  # Python lets no other set handlers
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.now = self.now or self.signal != 0 or number != signal.SIGINT
        self.signal = number

"""How a scan tells the outside how far it is; what is shown is up to the caller."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Told of each stage of one slide."""

    def start(self, stage: str, total: int, mm2: float) -> None:
        """Begin a stage of ``total`` steps that cover ``mm2`` of tissue (0: not a matter of area)."""

    def advance(self, steps: int) -> None:
        """Note that so many more steps of the current stage are done."""


class Silent:
    """Shows nothing."""

    def start(self, stage: str, total: int, mm2: float) -> None:
        """Ignore."""

    def advance(self, steps: int) -> None:
        """Ignore."""

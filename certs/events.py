"""How the long-running parts report: a name and flat fields, so that the host process owns the log format."""

from __future__ import annotations

from collections.abc import Callable, Mapping

OnEvent = Callable[[str, Mapping[str, object]], None]
"""Called in the event loop; must neither block nor raise."""


def ignore_event(name: str, fields: Mapping[str, object]) -> None:
    """Drop the event."""

"""The one place that reads the wall clock, because certificates are dated in civil time.

Everything else takes the time as an argument, or takes a function that callers may replace.
"""

from __future__ import annotations

import time
from collections.abc import Callable

WallClock = Callable[[], float]
"""Returns unix seconds (UTC)."""


def wall_clock() -> float:
    """The system's idea of now, in unix seconds."""
    return time.time()  # noqa: TID251 - the default of every `wall` parameter

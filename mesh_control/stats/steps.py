"""Long work in steps, so that whoever does it can do something else in between."""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

T = TypeVar("T")
Steps = Generator[None, None, T]
STEP = 500
"""Rows between two steps: some 5 ms."""

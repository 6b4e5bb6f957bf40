"""What holds for every test."""

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    """Undo `gc.freeze`, which is for processes: what a test leaves must not stay for the others' lifetime."""
    yield
    gc.unfreeze()

"""What holds for every test."""

import gc
from collections.abc import Iterator

import hypothesis
import pytest

# The same examples each time, so that a run fails for what was changed; `--hypothesis-profile=default`
# searches on.
hypothesis.settings.register_profile("suite", derandomize=True)
hypothesis.settings.load_profile("suite")


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    """Undo `gc.freeze`, which is for processes: what a test leaves must not stay for the others' lifetime."""
    yield
    gc.unfreeze()

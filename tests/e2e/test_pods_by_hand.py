"""The example of pods with hand-written sidecars does on a local cluster what it says."""

import os
import sys
from pathlib import Path

import pytest

from tests.support.local_cluster import run

pytestmark = pytest.mark.e2e


def test_the_example_runs_to_its_end_and_cleans_up() -> None:
    name = f"hand-{os.getpid()}"
    done = run(sys.executable, "-m", "examples.pods_by_hand", "--cluster", name, timeout=180)
    assert done.stdout.count("ok: ") == 5
    assert "FAILED" not in done.stdout
    assert not Path("/var/lib/triomesh/local", name).exists()
    assert not Path("/run/triomesh/pods-by-hand").exists()

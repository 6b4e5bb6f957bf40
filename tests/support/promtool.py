"""Prometheus' own opinion of a metrics page."""

import shutil
import subprocess

import pytest


def complaints(page: str) -> str:
    """What `promtool check metrics` says of a page; '' for a good one. Skips where there is no promtool."""
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not here; scripts/system-packages installs it")
    command = [program, "check", "metrics"]
    done = subprocess.run(command, input=page, capture_output=True, text=True, timeout=30)
    return done.stdout + done.stderr or ("" if done.returncode == 0 else f"exit code {done.returncode}")

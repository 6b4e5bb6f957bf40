"""Removing directories that containers wrote to."""

import subprocess
from pathlib import Path


def remove(directory: Path) -> None:
    """Remove a directory and what is in it; nothing if it is not there. What is still mounted there is left.

    By rm(1): `shutil.rmtree` is recursive and fails on directories nested deep enough.

    Raises:
        OSError: something cannot be removed; the rest is.
    """
    command = ["rm", "-rf", "--one-file-system", "--", str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OSError(done.stderr.strip() or f"rm -rf {directory}: exit code {done.returncode}")

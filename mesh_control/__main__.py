"""`triomesh-control`: one replica of the control plane. It takes no arguments; see `mesh_control.settings`.

Exit code 0 after a signal, 2 with one line on stderr if it cannot start or go on.
"""

from __future__ import annotations

import os
import random
import sys

import trio

from mesh_control.app import run
from mesh_control.kube.access import AccessError, default_access
from mesh_control.kube.client import Client
from mesh_control.kube.errors import KubeError
from mesh_control.serve.ca_store import CaStoreError
from mesh_control.settings import Settings, SettingsError, from_environment
from mesh_ops.log_writer import LogWriter


def main() -> int:
    """Run a replica."""
    try:
        settings = from_environment(os.environ)
        access = default_access()
    except (SettingsError, AccessError) as exc:
        print(f"triomesh-control: {exc}", file=sys.stderr)
        return 2
    log = LogWriter(1, level=settings.log_level)
    failure: BaseException | None = None
    try:
        trio.run(_run, settings, Client(access), log)
    except* (KubeError, CaStoreError, OSError) as group:
        failure = group
    finally:
        log.close(1.0)
    while isinstance(failure, BaseExceptionGroup):
        failure = failure.exceptions[0]
    if failure is not None:
        print(f"triomesh-control: {failure}", file=sys.stderr)
        return 2
    return 0


async def _run(settings: Settings, client: Client, log: LogWriter) -> None:
    async with client:
        await run(settings, client, log, random.Random(os.urandom(16)))


if __name__ == "__main__":
    sys.exit(main())

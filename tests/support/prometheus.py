"""A real Prometheus server that scrapes pages on loopback."""

import json
import shutil
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

START_S = 30.0


class Prometheus:
    """A running server."""

    def __init__(self, port: int) -> None:
        self._port = port

    def _get(self, path: str) -> object:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}{path}", timeout=5) as answer:
            return json.load(answer)

    async def ready(self) -> bool:
        """Whether it answers."""
        url = f"http://127.0.0.1:{self._port}/-/ready"
        try:
            with await trio.to_thread.run_sync(lambda: urllib.request.urlopen(url, timeout=5)):
                return True
        except urllib.error.HTTPError as starting:
            starting.close()
            return False
        except OSError:
            return False

    async def query(self, text: str) -> dict[tuple[str, ...], float]:
        """The values of an instant query by the values of their labels. Raises OSError."""
        path = f"/api/v1/query?{urllib.parse.urlencode({'query': text})}"
        try:
            found = await trio.to_thread.run_sync(self._get, path)
        except urllib.error.HTTPError as exc:
            with exc:
                raise AssertionError(f"{text}: {exc.read().decode()}") from None
        return {
            tuple(value for _, value in sorted(each["metric"].items())): float(each["value"][1])
            for each in found["data"]["result"]  # type: ignore[index]
        }


@asynccontextmanager
async def prometheus(directory: Path, targets: Mapping[str, int]) -> AsyncIterator[Prometheus]:
    """Scrape `targets` (job and port on loopback) five times a second. Skips where there is no Prometheus."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not here; scripts/system-packages installs it")
    jobs = [
        {"job_name": job, "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}
        for job, port in targets.items()
    ]
    config = directory / "prometheus.json"  # JSON is YAML
    often = {"scrape_interval": "200ms", "scrape_timeout": "200ms"}
    config.write_text(json.dumps({"global": often, "scrape_configs": jobs}))
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    command = [
        program,
        f"--config.file={config}",
        f"--storage.tsdb.path={directory / 'tsdb'}",
        "--storage.tsdb.retention.size=64MB",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=warn",
    ]
    with (directory / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)  # noqa: ASYNC220 - returns at once
        try:
            server = Prometheus(port)
            with trio.fail_after(START_S):
                while not await server.ready():
                    assert process.poll() is None, (directory / "prometheus.log").read_text()
                    await trio.sleep(0.05)
            yield server
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(process.wait)

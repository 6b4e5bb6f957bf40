"""The application behind every pair: nginx with one worker on loopback, and files of known content."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from bench.net import answers
from bench.procs import BenchError, Proc, free_port, running, until

SMALL, MEDIUM, BULK = "/1k", "/64k", "/10m"
SIZES = {SMALL: 1024, MEDIUM: 64 * 1024, BULK: 10_000_000}

_CONFIG = """\
daemon off;
master_process off;
pid {directory}/nginx.pid;
error_log {directory}/nginx.error.log warn;
worker_rlimit_nofile 16384;
events {{ worker_connections 8192; }}
http {{
  access_log off;
  default_type text/plain;
  sendfile on;
  tcp_nopush on;
  keepalive_timeout 600s;
  keepalive_requests 1000000000;
  open_file_cache max=16 inactive=1h;
  client_body_temp_path {directory}/body;
  proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
  server {{ listen 127.0.0.1:{port} backlog=4096; root {directory}/www; }}
}}
"""


@dataclass(frozen=True)
class Origin:
    """The running server."""

    port: int
    proc: Proc


def body(path: str) -> bytes:
    """What the server answers for one of `SIZES`."""
    size = SIZES[path]
    return (b"0123456789abcdef" * (size // 16 + 1))[:size]


@contextlib.asynccontextmanager
async def origin(directory: Path) -> AsyncIterator[Origin]:
    """nginx for the length of the block."""
    nginx = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
    if nginx is None:
        raise BenchError("nginx: not installed")
    (directory / "www").mkdir()
    for path in SIZES:
        (directory / "www" / path[1:]).write_bytes(body(path))
    port = free_port()
    config = directory / "nginx.conf"
    config.write_text(_CONFIG.format(directory=directory, port=port))
    async with running("nginx", [nginx, "-c", str(config), "-p", str(directory)], directory) as proc:
        await until("serving", proc, lambda: answers(port, SMALL, body(SMALL)), 10.0)
        yield Origin(port, proc)

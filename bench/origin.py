"""The applications behind the pairs: servers with one worker on loopback, and files of known content.

nginx speaks HTTP/1.1; nghttpd speaks HTTP/2 in cleartext, a second one with the trailers of a gRPC answer.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from bench.net import answers, answers_http2
from bench.procs import BenchError, free_port, running, until

SMALL, MEDIUM, BULK = "/1k", "/64k", "/10m"
UNARY = "/bench.Echo/unary.grpc"
"""A gRPC method; what it answers is one message of 1 KB."""
SIZES = {SMALL: 1024, MEDIUM: 64 * 1024, BULK: 10_000_000, UNARY: 5 + 1024}
GRPC_FIELDS = ("content-type: application/grpc", "te: trailers")
GRPC_MESSAGE = b"\0\0\0\0\x40" + b"m" * 64
"""What a caller of `UNARY` sends: one message of 64 bytes behind its flag and length."""

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
    """nginx, HTTP/1.1."""
    http2: int
    grpc: int
    message: Path
    """A file with `GRPC_MESSAGE`."""


def body(path: str) -> bytes:
    """What the server answers for one of `SIZES`."""
    prefix = b"\0" + (SIZES[path] - 5).to_bytes(4) if path == UNARY else b""
    size = SIZES[path] - len(prefix)
    return prefix + (b"0123456789abcdef" * (size // 16 + 1))[:size]


def find(program: str) -> str:
    """The path of an installed program. Raises BenchError."""
    found = shutil.which(program, path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
    if found is None:
        raise BenchError(f"{program}: not installed")
    return found


@contextlib.asynccontextmanager
async def origin(directory: Path) -> AsyncIterator[Origin]:
    """All servers for the length of the block."""
    for path in SIZES:
        file = directory / "www" / path[1:]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(body(path))
    message = directory / "message.grpc"
    message.write_bytes(GRPC_MESSAGE)
    async with (
        _nginx(directory) as port,
        _nghttpd(directory, SMALL) as http2,
        _nghttpd(directory, UNARY, "--no-content-length", "--trailer", "grpc-status: 0") as grpc,
    ):
        yield Origin(port, http2, grpc, message)


@contextlib.asynccontextmanager
async def _nginx(directory: Path) -> AsyncIterator[int]:
    port = free_port()
    config = directory / "nginx.conf"
    config.write_text(_CONFIG.format(directory=directory, port=port))
    command = [find("nginx"), "-c", str(config), "-p", str(directory)]
    async with running("nginx", command, directory) as proc:
        await until("serving", proc, lambda: answers(port, SMALL, body(SMALL)), 10.0)
        yield port


@contextlib.asynccontextmanager
async def _nghttpd(directory: Path, path: str, *options: str) -> AsyncIterator[int]:
    port = free_port()
    types = directory / "mime.types"
    types.write_text("application/grpc grpc\n")
    command = [find("nghttpd"), "--no-tls", "-a", "127.0.0.1", "-d", str(directory / "www"), *options]
    command += ["--mime-types-file", str(types), str(port)]
    async with running(f"nghttpd-{port}", command, directory) as proc:
        await until("serving", proc, lambda: answers_http2(port, path, body(path)), 10.0)
        yield port

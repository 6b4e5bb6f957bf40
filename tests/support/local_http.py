"""Requests to the API server's ASGI application in process, and to a served one over TLS."""

import json
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import trio

from mesh_local.apiserver.api import Api
from mesh_local.apiserver.auth.pki import Pki, write_kubeconfig
from mesh_local.apiserver.face.app import App
from mesh_local.apiserver.face.messages import Message
from mesh_local.apiserver.face.server import Server, server_context
from mesh_local.apiserver.types import ANONYMOUS, Authenticator, HttpEndpoint, User
from mesh_local.machinery import errors
from tests.support.local_api import ADMIN, LocalApi

KUBECTL = Path(sys.executable).parent / "kubectl"


class Tokens:
    """Authenticates by a fixed table of bearer tokens; a client certificate is the administrator."""

    def __init__(self, users: Mapping[str, User]) -> None:
        self._users = users

    async def authenticate(self, token: str | None, certificate: bytes | None) -> User:
        if token is not None:
            if token not in self._users:
                raise errors.unauthorized()
            return self._users[token]
        return ADMIN if certificate is not None else ANONYMOUS


@dataclass
class Answer:
    """A response, read to its end."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        return [json.loads(line) for line in self.body.splitlines()]

    def header(self, name: str) -> str | None:
        return next((v for k, v in self.headers if k == name), None)


class Browser:
    """Speaks to an `App` as an authenticated HTTP client does."""

    def __init__(self, api: Api, *, token: str = "admin", users: Mapping[str, User] | None = None) -> None:
        self.app = App(api, Tokens({"admin": ADMIN, **(users or {})}), "127.0.0.1:6443")
        self._token = token

    async def __call__(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        type: str = "application/json",
        accept: str = "application/json",
        headers: Mapping[str, str] | None = None,
        stop: trio.Event | None = None,
    ) -> Answer:
        """Make a request; `stop` closes the client's side of a stream."""
        target, _, query = path.partition("?")
        raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        sent = {"accept": accept, "authorization": f"Bearer {self._token}", **(headers or {})}
        if type:
            sent["content-type"] = type
        answer = Answer(0, [], b"")
        asked = False
        gone = trio.Event() if stop is None else stop

        async def receive() -> Message:
            nonlocal asked
            if not asked:
                asked = True
                return {"type": "http.request", "body": raw, "more_body": False}
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer.status = message["status"]
                answer.headers = [(k.decode(), v.decode()) for k, v in message["headers"]]
            else:
                answer.body += message.get("body", b"")

        scope = {
            "type": "http",
            "method": method,
            "path": unquote(target),
            "raw_path": target.encode(),
            "query_string": quote(query, safe="=&%+").encode(),
            "headers": [(k.encode(), v.encode()) for k, v in sent.items()],
        }
        await self.app.serve(scope, receive, send, None)
        return answer


@dataclass
class Served:
    """A server on a loopback port, and a kubeconfig of its administrator."""

    port: int
    pki: Pki
    kubeconfig: Path
    server: Server

    async def kubectl(self, *arguments: str, stdin: str = "", check: bool = True) -> str:
        """Run the real kubectl; returns stdout, or stderr where it fails and `check` is off."""
        environment = {**os.environ, "KUBECONFIG": str(self.kubeconfig), "HOME": str(self.kubeconfig.parent)}
        with trio.fail_after(30):
            done = await trio.run_process(
                [KUBECTL, *arguments],
                stdin=stdin.encode(),
                capture_stdout=True,
                capture_stderr=True,
                check=False,
                env=environment,
            )
        assert done.returncode == 0 or not check, done.stderr.decode()
        return (done.stdout if done.returncode == 0 else done.stderr).decode()


@asynccontextmanager
async def served(
    local: LocalApi,
    directory: Path,
    *,
    max_connections: int = 100,
    authenticator: Authenticator | None = None,
    http: Mapping[tuple[str, str], HttpEndpoint] | None = None,
) -> AsyncIterator[Served]:
    """Serve over TLS until the context ends.

    Args:
        http: what answers subresources in HTTP, by (resource, subresource).
    """
    pki = Pki(directory / "pki", datetime.now(UTC))
    pki.server(["127.0.0.1"])
    admin = pki.client("admin", "admin", ["system:masters"])
    certificate, key = directory / "pki" / "apiserver.crt", directory / "pki" / "apiserver.key"
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    app = App(local.api, authenticator or Tokens({}), f"127.0.0.1:{port}")
    for (resource, subresource), endpoint in (http or {}).items():
        app.register(resource, subresource, endpoint)
    server = Server(app, server_context(certificate, key, pki.ca_path), max_connections=max_connections)
    kubeconfig = directory / "kubeconfig"
    url = f"https://127.0.0.1:{port}"
    write_kubeconfig(kubeconfig, url, pki.ca.certificate, admin, cluster="local", user="admin")
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run, listeners, stop)
        yield Served(port, pki, kubeconfig, server)
        local.store.end_watches()
        stop.set()

"""Clients that work without a pause, and what became of it."""

from __future__ import annotations

import http.client
import threading
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from examples.two_pods.scene import Http, Pod


class Failed(Exception):
    """An exchange went wrong in a way that is no exception of the transport."""


class Client(Protocol):
    """Repeats one exchange; `dialled` counts the connections that it has made."""

    dialled: int

    def once(self) -> str:
        """One exchange; returns who served it. Raises OSError, HTTPException or Failed."""
        ...

    def close(self) -> None:
        """Give up the connection, if there is one."""
        ...


class KeptHttp(Http):
    """Requests on one connection as long as it lives."""

    path = "/"
    headers: dict[str, str] | None = None

    def once(self) -> str:
        """One request."""
        reply = self.fetch(self.path, None, self.headers)
        if reply.status != 200:
            raise Failed(f"{reply.status} {reply.error}")
        return reply.headers.get("x-served-by", "")


class FreshHttp(KeptHttp):
    """Each request on a connection of its own."""

    headers = {"connection": "close"}  # noqa: RUF012 - never changed


class FreshTcp:
    """Connects, reads the greeting, exchanges a line, ends its direction and waits for the other's end."""

    def __init__(self, pod: Pod, ip: str, port: int) -> None:
        self._at = (ip, port)
        self._pod = pod
        self.dialled = 0

    def once(self) -> str:
        """One connection."""
        self.dialled += 1
        with self._pod.connect(*self._at) as sock, sock.makefile("rb") as lines:
            greeting = lines.readline()
            sock.sendall(b"ping\n")
            sock.shutdown(1)
            rest = lines.read()
        if not greeting.startswith(b"220 ") or rest != b"PING\n":
            raise Failed(f"{greeting!r} {rest!r}")
        return greeting.split()[1].decode()

    def close(self) -> None:
        """Nothing is kept."""


class Load:
    """Runs its clients, a thread for each, as long as the `with` block lasts."""

    def __init__(self, clients: Sequence[Client]) -> None:
        self._clients = clients
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(client,)) for client in clients]
        self._lock = threading.Lock()
        self.ok = 0
        self.failures: Counter[str] = Counter()
        self.served_by: Counter[str] = Counter()

    @property
    def dialled(self) -> int:
        """How many connections the clients have made."""
        return sum(client.dialled for client in self._clients)

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, client: Client) -> None:
        while not self._stop.is_set():
            failure = served_by = ""
            try:
                served_by = client.once()
            except (OSError, http.client.HTTPException, Failed) as exc:
                failure = repr(exc)
                client.close()
            with self._lock:
                if failure:
                    self.failures[failure] += 1
                else:
                    self.ok += 1
                    self.served_by[served_by] += 1
        client.close()

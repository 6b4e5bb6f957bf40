"""The demo application's agents and sidecars, asked by way of the API server."""

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol
from urllib.parse import quote, urlencode

from tests.cluster.app import AGENT_PORT


class Kubectl(Protocol):
    """A cluster, as `kubectl` sees it; each call has a deadline and raises where it fails."""

    def kubectl(self, *args: str) -> "subprocess.CompletedProcess[str]": ...

    def json(self, *args: str) -> Any: ...

    def until(self, done: Callable[[], bool], what: str) -> None: ...


def pods(cluster: Kubectl, where: str, selector: str) -> list[dict[str, Any]]:
    """The pods with these labels that are to stay."""
    found = cluster.json("-n", where, "get", "pods", "-l", selector)["items"]
    return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]


def name_of(pod: dict[str, Any]) -> str:
    return str(pod["metadata"]["name"])


def metrics(cluster: Kubectl, where: str, pod: str) -> str:
    return cluster.kubectl(
        "get", "--raw", f"/api/v1/namespaces/{where}/pods/{pod}:15020/proxy/metrics"
    ).stdout


class Agent:
    """The agent of the one pod of an application."""

    def __init__(self, cluster: Kubectl, where: str, app: str) -> None:
        self.pod = pods(cluster, where, f"app={app}")[0]
        self._cluster = cluster
        self._path = f"/api/v1/namespaces/{where}/pods/{name_of(self.pod)}:{AGENT_PORT}/proxy"

    def path_of_call(self, url: str, timeout: float = 10) -> str:
        return f"{self._path}/call?url={quote(url, safe='')}&timeout={timeout}"

    def call(self, url: str, timeout: float = 10) -> Any:
        """One request on a connection of its own; see `tests.cluster.app.call`."""
        return self._get(self.path_of_call(url, timeout))

    @contextmanager
    def load(self, *urls: str) -> Iterator["Load"]:
        """Requests without end to these URLs, on kept and on new connections; none may fail."""
        self._get(f"{self._path}/load/start?" + urlencode({"url": urls}, doseq=True))
        load = Load(self._cluster, lambda: self._get(f"{self._path}/load"))
        load.goes_on()
        try:
            yield load
            load.goes_on()
        finally:
            end = self._get(f"{self._path}/load/stop")
        assert end["failed"] == 0, f"{end['failed']} of {end['ok'] + end['failed']}: {end['failures'][:3]}"

    def _get(self, path: str) -> Any:
        return json.loads(self._cluster.kubectl("get", "--raw", path).stdout)


class Load:
    def __init__(self, cluster: Kubectl, state: Callable[[], Any]) -> None:
        self._cluster = cluster
        self._state = state

    def goes_on(self, more: int = 50) -> None:
        """Return once so many more requests were answered."""
        before = self._state()["ok"]
        self._cluster.until(lambda: self._state()["ok"] >= before + more, f"{more} more answers")

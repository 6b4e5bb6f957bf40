"""A real local cluster for end-to-end tests: `meshctl local up`, kubectl, `meshctl local down --purge`."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trio

BIN = Path(sys.executable).parent
KUBECTL = BIN / "kubectl"


class Cluster:
    """One cluster, named after the test process so that runs do not meet."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.kubeconfig = Path("/var/lib/triomesh/local") / name / "kubeconfig"

    def local(self, *args: str, check: bool = True, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """`meshctl local ARGS --name NAME`."""
        return run(str(BIN / "meshctl"), "local", *args, "--name", self.name, check=check, timeout=timeout)

    def kubectl(
        self, *args: str, stdin: str | None = None, check: bool = True, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        command = [str(KUBECTL), "--kubeconfig", str(self.kubeconfig), *args]
        # A cache of its own: discovery of another cluster on the same port must not be believed.
        environment = {**os.environ, "KUBECACHEDIR": f"/tmp/kube-cache-{self.name}"}
        return run(*command, stdin=stdin, check=check, timeout=timeout, env=environment)

    def json(self, *args: str) -> Any:
        return json.loads(self.kubectl(*args, "-o", "json").stdout)

    def apply(self, *objects: dict[str, Any]) -> str:
        manifest = "\n---\n".join(json.dumps(obj) for obj in objects)
        return self.kubectl("apply", "-f", "-", stdin=manifest).stdout

    def until(self, done: Callable[[], bool], what: str, limit_s: float = 30) -> None:
        async def poll() -> None:
            with trio.fail_after(limit_s):
                while not done():
                    await trio.sleep(0.1)

        try:
            trio.run(poll)
        except trio.TooSlowError:
            raise AssertionError(f"not within {limit_s} s: {what}") from None


def run(
    *command: str,
    stdin: str | None = None,
    check: bool = True,
    timeout: float = 60,
    env: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=timeout, env=env)
    if check:
        assert done.returncode == 0, (
            f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        )
    return done


@contextmanager
def running(name: str, *options: str) -> Iterator[Cluster]:
    """A cluster that is up, and gone afterwards."""
    cluster = Cluster(name)
    try:
        cluster.local("up", *options)
        yield cluster
    finally:
        cluster.local("down", "--purge")


def pod(name: str, *command: str, namespace: str = "default", **spec: Any) -> dict[str, Any]:
    """A Pod with one container `app` that runs `command`."""
    metadata: dict[str, Any] = {"name": name, "namespace": namespace, "labels": {"app": name}}
    container = {"name": "app", "image": "local", "command": list(command), **spec.pop("container", {})}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {"terminationGracePeriodSeconds": 1, "containers": [container], **spec},
    }

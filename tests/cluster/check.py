"""What `tests/cluster/run` does: install, try, uninstall, and say of each item whether it has passed."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.cluster import objects
from tests.cluster.agent import Agent, metrics, name_of, pods

MESHED, OUTSIDE, CLOSED = "triomesh-check", "triomesh-check-outside", "triomesh-check-strict"
SYSTEM, CONTROL = "triomesh-system", "deploy/triomesh-control"
ROOT = Path(__file__).parents[2]


class Failed(Exception):
    """An item has not passed; the message says why."""


class Cluster:
    """The cluster of a kubeconfig; `deadline` (monotonic) is that of the item under way."""

    def __init__(self, kubeconfig: Path, image: str) -> None:
        self.image = image
        self.deadline = time.monotonic() + 60
        self._environment = {**os.environ, "KUBECONFIG": str(kubeconfig)}
        beside = Path(sys.executable).with_name("kubectl")
        self._kubectl = shutil.which("kubectl") or (str(beside) if beside.exists() else "")
        if not self._kubectl:
            raise Failed("kubectl is not on the path")

    def kubectl(self, *args: str, stdin: str | None = None) -> "subprocess.CompletedProcess[str]":
        return self._run([self._kubectl, *args], stdin)

    def meshctl(self, *args: str) -> "subprocess.CompletedProcess[str]":
        return self._run([sys.executable, "-m", "meshctl", *args])

    def json(self, *args: str) -> Any:
        return json.loads(self.kubectl(*args, "-o", "json").stdout)

    def apply(self, *made: objects.Object) -> None:
        everything = {"apiVersion": "v1", "kind": "List", "items": made}
        self.kubectl("apply", "-f", "-", stdin=json.dumps(everything))

    def rolled_out(self, where: str, *names: str) -> None:
        for name in names:
            self.kubectl("-n", where, "rollout", "status", name, f"--timeout={self._left():.0f}s")

    def until(self, done: Callable[[], bool], what: str) -> None:
        pause = threading.Event()
        while not done():
            if self._left() < 1:
                raise Failed(f"not in time: {what}")
            pause.wait(0.5)

    def exists(self, *args: str) -> bool:
        return bool(self.kubectl("get", *args, "--ignore-not-found", "-o", "name").stdout.strip())

    def _left(self) -> float:
        return max(self.deadline - time.monotonic(), 0.1)

    def _run(self, command: list[str], stdin: str | None = None) -> "subprocess.CompletedProcess[str]":
        shown = " ".join([Path(command[0]).name, *command[1:]])[:200]
        try:
            done = subprocess.run(
                command,
                input=stdin,
                capture_output=True,
                text=True,
                timeout=self._left() + 2,
                env=self._environment,
                cwd=ROOT,
            )
        except subprocess.TimeoutExpired:
            raise Failed(f"not in time: {shown}") from None
        if done.returncode:
            said = (done.stderr.strip() or done.stdout.strip()).splitlines()
            raise Failed(f"{shown}: exit code {done.returncode}: {'; '.join(said)[:600]}")
        return done


# -- the items, in their order -----------------------------------------------------------------------------


def prerequisites(cluster: Cluster) -> None:
    cluster.meshctl("check", "--pre")


def install(cluster: Cluster) -> None:
    path, slash, last = cluster.image.rpartition("/")  # a registry may have a port
    name, _, tag = last.partition(":")
    values = ("--set", f"image.repository={path}{slash}{name}", "--set", f"image.tag={tag or 'latest'}")
    cluster.meshctl("install", *values, "--wait", "--timeout", "280s")


def application(cluster: Cluster) -> None:
    cluster.apply(
        objects.namespace(MESHED),
        objects.namespace(CLOSED),
        objects.namespace(OUTSIDE, meshed=False),
        objects.deployment(MESHED, "web", cluster.image, replicas=2),
        objects.service(MESHED, "web"),
        objects.deployment(MESHED, "client", cluster.image),
        objects.deployment(OUTSIDE, "client", cluster.image),
    )
    cluster.rolled_out(MESHED, "deploy/web", "deploy/client")
    cluster.rolled_out(OUTSIDE, "deploy/client")


def injection(cluster: Cluster) -> None:
    for where, meshed in ((MESHED, True), (OUTSIDE, False)):
        for pod in pods(cluster, where, "app"):
            spec = pod["spec"]
            names = [one["name"] for one in (*spec.get("initContainers", []), *spec["containers"])]
            if ("triomesh-proxy" in names) != meshed:
                raise Failed(f"{where}/{name_of(pod)} has the containers {', '.join(names)}")


def mtls(cluster: Cluster) -> None:
    for _ in range(5):
        _expect(Agent(cluster, MESHED, "client").call("http://web/"), 200)
    shown = "".join(metrics(cluster, MESHED, name_of(pod)) for pod in pods(cluster, MESHED, "app=web"))
    wanted = (f"ns/{MESHED}/sa/default", 'mtls="true"', 'code="200"', 'direction="inbound"')
    if not any(all(word in line for word in wanted) for line in shown.splitlines()):
        raise Failed("the servers' sidecars have counted no request by mTLS from the client's identity")


def outside_is_served(cluster: Cluster) -> None:
    _expect(Agent(cluster, OUTSIDE, "client").call(f"http://web.{MESHED}/"), 200)


def job(cluster: Cluster) -> None:
    cluster.apply(objects.job(MESHED, "once", cluster.image, "http://web/"))
    states = {"Complete": False, "Failed": False}

    def ended() -> bool:
        status = cluster.json("-n", MESHED, "get", "job", "once").get("status", {})
        for condition in status.get("conditions", []):
            if condition["type"] in states and condition["status"] == "True":
                states[condition["type"]] = True
        return any(states.values())

    cluster.until(ended, "the Job's end")
    if states["Failed"]:
        said = cluster.kubectl("-n", MESHED, "logs", "job/once", "--all-containers", "--tail=3").stdout
        raise Failed(f"the Job has failed: {said.strip()[:300]}")


def strict(cluster: Cluster) -> None:
    cluster.apply(
        objects.strict(CLOSED),
        objects.deployment(CLOSED, "http", cluster.image),
        objects.service(CLOSED, "http"),
    )
    cluster.rolled_out(CLOSED, "deploy/http")
    outside = Agent(cluster, OUTSIDE, "client")
    cluster.until(
        lambda: "status" not in outside.call(f"http://http.{CLOSED}/"), "a pod outside the mesh refused"
    )
    _expect(Agent(cluster, MESHED, "client").call(f"http://http.{CLOSED}/"), 200)


def probes_under_strict(cluster: Cluster) -> None:
    others = [probe for probe in objects.PROBES if probe != "http"]
    cluster.apply(*(objects.deployment(CLOSED, probe, cluster.image, probe=probe) for probe in others))
    cluster.kubectl("-n", CLOSED, "rollout", "restart", "deploy/http")
    cluster.rolled_out(CLOSED, *(f"deploy/{probe}" for probe in objects.PROBES))


def restart_under_load(cluster: Cluster) -> None:
    with Agent(cluster, MESHED, "client").load("http://web/") as load:
        cluster.kubectl("-n", SYSTEM, "rollout", "restart", CONTROL)
        cluster.rolled_out(SYSTEM, CONTROL)
        load.goes_on()
    cluster.apply(objects.service(MESHED, "late", app="web"))
    client = Agent(cluster, MESHED, "client")
    cluster.until(lambda: client.call("http://late/").get("status") == 200, "a Service that came afterwards")


def own_checks(cluster: Cluster) -> None:
    cluster.meshctl("check")


def uninstall(cluster: Cluster) -> None:
    try:
        cluster.meshctl("uninstall")
    except Failed as exc:
        if "sidecar" not in str(exc):
            raise
    else:
        raise Failed("it was not refused while pods have sidecars")
    _remove_application(cluster)
    cluster.meshctl("uninstall", "--purge")
    cluster.until(lambda: not cluster.exists("namespace", SYSTEM), f"namespace {SYSTEM} gone")
    left = [
        f"{kind}/{name}"
        for kind, name in (
            ("crd", "meshpolicies.triomesh.dev"),
            ("clusterrole", "triomesh-control"),
            ("mutatingwebhookconfiguration", "triomesh-injector"),
            ("validatingwebhookconfiguration", "triomesh-validator"),
        )
        if cluster.exists(kind, name)
    ]
    if left:
        raise Failed(f"left behind: {', '.join(left)}")


def _expect(found: Any, status: int) -> None:
    if found.get("status") != status:
        got = f"{found.get('status') or found.get('error')} {found.get('mesh_error') or ''}"
        raise Failed(f"expected {status}, got {got}")


def _remove_application(cluster: Cluster) -> None:
    cluster.kubectl("delete", "namespace", MESHED, OUTSIDE, CLOSED, "--ignore-not-found")


ITEMS: tuple[tuple[Callable[[Cluster], None], float], ...] = (
    (prerequisites, 60),
    (install, 300),
    (application, 180),
    (injection, 30),
    (mtls, 60),
    (outside_is_served, 30),
    (job, 120),
    (strict, 120),
    (probes_under_strict, 120),
    (restart_under_load, 180),
    (own_checks, 60),
    (uninstall, 180),
)
NEEDED = (install, application)
"""Without these nothing after them is tried."""


def attempt(cluster: Cluster, item: Callable[[Cluster], None], limit_s: float) -> bool:
    name = item.__name__.replace("_", "-")
    cluster.deadline = time.monotonic() + limit_s
    try:
        item(cluster)
    except (Failed, AssertionError, LookupError, ValueError) as exc:
        print(
            f"FAIL {name}: {type(exc).__name__ + ': ' if isinstance(exc, LookupError) else ''}{exc}",
            flush=True,
        )
        return False
    print(f"PASS {name}", flush=True)
    return True


def clean(cluster: Cluster) -> None:
    """Remove whatever an item that failed has left."""
    cluster.deadline = time.monotonic() + 120
    try:
        if cluster.exists("namespace", SYSTEM):
            cluster.meshctl("uninstall", "--force", "--purge")
        _remove_application(cluster)
    except Failed as exc:
        print(f"FAIL clean-up: {exc}", flush=True)


def main(arguments: list[str]) -> int:
    if len(arguments) != 2 or not Path(arguments[0]).is_file() or "@" in arguments[1]:
        print("usage: tests/cluster/run KUBECONFIG IMAGE (REPOSITORY:TAG, without a digest)", file=sys.stderr)
        return 2
    try:
        cluster = Cluster(Path(arguments[0]).resolve(), arguments[1])
        there = [name for name in (SYSTEM, MESHED, OUTSIDE, CLOSED) if cluster.exists("namespace", name)]
    except Failed as exc:
        print(f"nothing was tried: {exc}", file=sys.stderr)
        return 2
    if there:
        # What is there would be removed at the end.
        print(f"nothing was tried: there is already the namespace {', '.join(there)}", file=sys.stderr)
        return 2
    passed = True
    try:
        for item, limit_s in ITEMS:
            done = attempt(cluster, item, limit_s)
            passed = passed and done
            if not done and item in NEEDED:
                break
    finally:
        clean(cluster)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

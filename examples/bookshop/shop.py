"""The bookshop on a local cluster, from outside: commands, shown, and what its load generator counted."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from threading import Event
from time import monotonic
from typing import Any

from examples.two_pods.netns import SceneError

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BIN = Path(sys.executable).parent
NAMESPACE = "bookshop"
SYSTEM = "triomesh-system"


class Totals:
    """The load generator's totals at one moment."""

    def __init__(self, line: dict[str, Any]) -> None:
        self._line = line
        self.problems: list[str] = line.get("problems", [])

    def __getitem__(self, name: str) -> int:
        return int(self._line.get(name, 0))

    def since(self, before: Totals, name: str) -> int:
        """How much was counted since an earlier moment."""
        return self[name] - before[name]


class Shop:
    """One local cluster."""

    def __init__(self, cluster: str) -> None:
        self.cluster = cluster
        self.began = monotonic()
        self.kubeconfig = Path("/var/lib/triomesh/local") / cluster / "kubeconfig"

    def title(self, text: str) -> None:
        print(f"\n[{monotonic() - self.began:5.1f} s] {text}", flush=True)

    def run(self, program: str, *arguments: str, limit_s: float = 90) -> str:
        """Run a program of the project; its output. Raises SceneError with what it said."""
        environment = {**os.environ, "KUBECONFIG": str(self.kubeconfig)}
        shown = shlex.join((program, *arguments))
        try:
            done = subprocess.run(
                (str(BIN / program), *arguments),
                capture_output=True,
                text=True,
                timeout=limit_s,
                env=environment,
                cwd=ROOT,
            )
        except subprocess.TimeoutExpired:
            raise SceneError(f"{shown}: not done in {limit_s:g} s") from None
        if done.returncode:
            raise SceneError(f"{shown}: {' '.join((done.stderr or done.stdout).split())}")
        return done.stdout

    def show(self, program: str, *arguments: str, lines: int = 40, limit_s: float = 90) -> str:
        """The same, with the command and the head of its output printed."""
        print(f"  $ {shlex.join((program, *arguments))}", flush=True)
        said = self.run(program, *arguments, limit_s=limit_s)
        text = said.rstrip().splitlines()
        for line in text[:lines]:
            print(f"    {line}")
        if len(text) > lines:
            print(f"    ... {len(text) - lines} lines more")
        sys.stdout.flush()
        return said

    def kubectl(self, *arguments: str, limit_s: float = 90) -> str:
        return self.run("kubectl", *arguments, limit_s=limit_s)

    def json(self, program: str, *arguments: str) -> Any:
        """What a command answers with `-o json`."""
        return json.loads(self.run(program, *arguments, "-o", "json"))

    def pods(self, app: str, namespace: str = NAMESPACE, **labels: str) -> list[str]:
        """The pods of an application that are to stay."""
        wanted = ",".join(f"{key}={value}" for key, value in {"app": app, **labels}.items())
        found = self.json("kubectl", "-n", namespace, "get", "pods", "-l", wanted)["items"]
        return [p["metadata"]["name"] for p in found if "deletionTimestamp" not in p["metadata"]]

    def totals(self) -> Totals:
        """What the load generator has counted by now."""
        line = self.kubectl("-n", NAMESPACE, "logs", "deploy/load", "-c", "load", "--tail=1").strip()
        return Totals(json.loads(line) if line else {})

    def after(self, before: Totals, requests: int, limit_s: float = 90) -> Totals:
        """The totals once so many requests more have been made; what is seen is said while it lasts."""
        end = monotonic() + limit_s
        said = 0
        while True:
            now = self.totals()
            made = now.since(before, "requests")
            if made - said >= requests / 4 or made >= requests:
                said = made
                print(f"  {made} of {requests} requests, {now.since(before, 'failed')} failed", flush=True)
            if made >= requests:
                return now
            if monotonic() > end:
                raise TimeoutError(f"not within {limit_s:g} s: {requests} requests of the load generator")
            Event().wait(0.5)

    def serves(self, pod: str, path: str) -> str:
        """What a pod's own program answers, through the API server."""
        page = f"/api/v1/namespaces/{NAMESPACE}/pods/{pod}:9080/proxy{path}"
        return self.kubectl("get", "--raw", page).strip()

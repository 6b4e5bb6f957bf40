"""Waits with a deadline and with progress: what is waited for, and at the end why it did not come."""

import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import click

from manifests.names import CONTROL, INJECTOR
from meshctl.errors import MeshctlError
from meshctl.kube import Kube, Reader

Object = dict[str, Any]
_STEP_S = 0.5


class Duration(click.ParamType[float]):
    """Text such as 90s or 2m, as seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float | int):
            return float(value)
        match = re.fullmatch(r"([0-9]{1,5})(s|m|h)", value)
        if match is None:
            self.fail(f"expected a time such as 90s or 2m, got {value!r}", param, ctx)
        return int(match[1]) * {"s": 1.0, "m": 60.0, "h": 3600.0}[match[2]]


def poll(limit_s: float) -> Iterator[None]:
    """Yield at once, then every half second until the time is over."""
    end = time.monotonic() + limit_s
    pause = threading.Event()
    while True:
        yield
        left = end - time.monotonic()
        if left <= 0:
            return
        pause.wait(min(_STEP_S, left))


def wait_control(kube: Kube, namespace: str, limit_s: float, say: Callable[[str], None]) -> None:
    """Wait for the control plane and for the webhook's bundle, which it writes; say each step.

    Raises:
        MeshctlError: not in time; says what its pods say.
    """
    last = ""
    for _ in poll(limit_s):
        state = progress(kube, namespace)
        if state != last:
            say(state or "the control plane is ready")
        if not state:
            return
        last = state
    raise MeshctlError(f"not ready within {limit_s:.0f} s: {last}{_why(kube, namespace)}")


def progress(kube: Kube, namespace: str) -> str:
    """What is still missing; '' when nothing is."""
    deployments = deployed(kube, namespace)
    if CONTROL not in deployments:
        return f"there is no deployment {CONTROL} in {namespace}"
    if state := next(filter(None, map(_rollout, deployments.values())), ""):
        return state
    webhook = kube.find("admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration", INJECTOR)
    if webhook and not all(hook["clientConfig"].get("caBundle") for hook in webhook.get("webhooks") or []):
        return f"{INJECTOR}: the control plane has not written its CA bundle"
    return ""


def deployed(kube: Reader, namespace: str) -> dict[str, Object]:
    """The control plane's Deployments by name: one, or one a role."""
    found = kube.items("apps/v1", "Deployment", namespace, labels=f"app.kubernetes.io/name={CONTROL}")
    return {each["metadata"]["name"]: each for each in found}


def _rollout(deployment: Object) -> str:
    """What a Deployment still lacks; '' when nothing."""
    name = deployment["metadata"]["name"]
    wanted = deployment["spec"].get("replicas", 1)
    status = deployment.get("status") or {}
    if status.get("observedGeneration", 0) < deployment["metadata"].get("generation", 1):
        return f"{name}: the new version has not been seen by the controller"
    updated, available = status.get("updatedReplicas", 0), status.get("availableReplicas", 0)
    if updated < wanted or available < wanted:
        return f"{name}: {available} of {wanted} replicas ready, {updated} of this version"
    if status.get("replicas", 0) > wanted:
        return f"{name}: {status['replicas'] - wanted} replicas of an older version still end"
    return ""


def _why(kube: Kube, namespace: str) -> str:
    """What containers of the control plane that do not run say about it."""
    pods = kube.items("v1", "Pod", namespace, labels=f"app.kubernetes.io/name={CONTROL}")
    reasons: dict[str, None] = {}
    for pod in pods:
        status = pod.get("status") or {}
        for condition in status.get("conditions") or []:
            if condition["type"] == "PodScheduled" and condition["status"] == "False":
                reasons[condition.get("message", "not scheduled")] = None
        for container in status.get("containerStatuses") or []:
            waiting = (container.get("state") or {}).get("waiting") or {}
            ended = (container.get("lastState") or {}).get("terminated") or {}
            text = ": ".join(t for t in (waiting.get("reason"), waiting.get("message")) if t)
            if ended.get("message"):
                text += f" ({ended['message'].strip().splitlines()[-1]})"
            if text:
                reasons[text] = None
    return "".join(f"\n  {reason}" for reason in reasons)

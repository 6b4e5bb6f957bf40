"""The admin pages about replicas and sidecars."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import lru_cache

import msgspec

from certs.bundle import BundleError, fingerprint, parse_certificates
from mesh_api.admin import LEVELS, ControlVersion, SidecarList, SidecarState
from mesh_api.discovery import ASK_S, Page, answer_within
from mesh_control.index.objects import Pod
from mesh_control.serve.admin import AdminPages, Call, Refused
from mesh_control.serve.admin_replicas import ASK_REPLICA_S, Fleet
from mesh_control.serve.discovery import DiscoveryServer
from mesh_control.serve.subscriptions import PodRef

SUGGESTED = 3


class SidecarPages:
    """What can be asked about sidecars; any of them, wherever it is connected."""

    def __init__(
        self,
        discovery: DiscoveryServer,
        fleet: Fleet,
        pods: Callable[[], Collection[Pod]],
        version: ControlVersion,
    ) -> None:
        """`pods` gives every pod of the cluster; may raise Refused while that is not known."""
        self._discovery = discovery
        self._fleet = fleet
        self._pods = pods
        self._version = version

    def add_to(self, pages: AdminPages) -> None:
        """Add them all."""
        one = "/sidecars/{namespace}/{pod}"
        pages.add("GET", "/version", self._show_version)
        pages.add("GET", "/sidecars", self._list)
        pages.add("GET", f"{one}/config", self._config)
        pages.add("PUT", f"{one}/log", self._log)

    async def ask(self, call: Call, pod: PodRef, page: Page, arguments: Mapping[str, str]) -> bytes:
        """What a sidecar answers, as JSON that is not looked into: who asked reads it.

        Raises Refused, AskFailed, or ValueError for arguments of no sense.
        """
        if pod in self._discovery.sidecars:
            return await self._discovery.ask(pod, page, arguments)
        if not call.local:
            within = ASK_REPLICA_S - ASK_S + answer_within(page, arguments)
            body = await self._fleet.forward(call, within)
            if body is not None:
                return body
        raise Refused(404, unknown(pod, self._pods()))

    async def _show_version(self, _call: Call) -> bytes:
        return msgspec.json.encode(self._version)

    async def _list(self, call: Call) -> bytes:
        namespace = call.query.get("namespace", "")
        mine = [state for state in self._states() if namespace in ("", state.namespace)]
        if call.local:
            return msgspec.json.encode(SidecarList(1, 1, tuple(mine)))
        rest = await self._fleet.gather(call, SidecarList)
        found = [*mine, *(state for answer in rest.answers for state in answer.sidecars)]
        return msgspec.json.encode(SidecarList(rest.replicas, rest.answered, _once(found)))

    def _states(self) -> Iterable[SidecarState]:
        for state in self._discovery.states():
            roots = _fingerprints(self._discovery.bundle_of(PodRef(state.namespace, state.pod)))
            yield msgspec.structs.replace(state, root_sha256=roots)

    async def _config(self, call: Call) -> bytes:
        return await self.ask(call, _pod(call), Page.CONFIG, {})

    async def _log(self, call: Call) -> bytes:
        level = call.query.get("level", "")
        if level not in LEVELS:
            raise Refused(400, f"level: expected one of {', '.join(LEVELS)}, got {level[:40]!r}")
        return await self.ask(call, _pod(call), Page.LOG, {"level": level})


def unknown(pod: PodRef, pods: Collection[Pod]) -> str:
    """What to say of a sidecar that no replica has."""
    named = f"{pod.namespace}/{pod.name}"
    there = next((one for one in pods if one.key == pod), None)
    if there is not None and not there.injected:
        return f"pod {named} has no sidecar"
    if there is not None:
        return f"the sidecar of pod {named} is not connected to the control plane"
    meshed = sorted(f"{one.namespace}/{one.name}" for one in pods if one.injected and not one.finished)
    near = [name for name in meshed if name.startswith(named) or name.endswith(f"/{pod.name}")]
    near += [name for name in difflib.get_close_matches(named, meshed, SUGGESTED) if name not in near]
    hint = f"; did you mean {' or '.join(near[:SUGGESTED])}?" if near else ""
    return f"there is no pod {named}{hint}"


def _pod(call: Call) -> PodRef:
    return PodRef(call.parts["namespace"], call.parts["pod"])


def _once(states: Iterable[SidecarState]) -> tuple[SidecarState, ...]:
    """Each sidecar once: one that has moved is known to two replicas for a moment."""
    newest: dict[tuple[str, str], SidecarState] = {}
    for state in sorted(states, key=lambda state: -state.connected_s):
        newest[state.namespace, state.pod] = state
    return tuple(newest[key] for key in sorted(newest))


@lru_cache(maxsize=8)
def _fingerprints(bundle: str) -> tuple[str, ...]:
    try:
        return tuple(fingerprint(cert) for cert in parse_certificates(bundle.encode(), "trust bundle"))
    except BundleError:
        return ()

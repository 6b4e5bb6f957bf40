"""Starting the containers of one pod, and what follows from each while it runs."""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import trio

from mesh_local.kubelet import container_spec, lifecycle, probes
from mesh_local.kubelet.environment import service_env
from mesh_local.kubelet.host import Host
from mesh_local.kubelet.logs import last_lines
from mesh_local.kubelet.prober import Kind, Listener, run_probes
from mesh_local.kubelet.records import UNKNOWN_REASON, Ended, Record, Running, Waiting, field_path
from mesh_local.kubelet.runtime import Container, Exit, StartFailed
from mesh_local.kubelet.sandbox import hostname
from mesh_local.kubelet.stopping import Grace, Live, stop
from mesh_local.kubelet.types import ConfigError
from mesh_local.kubelet.volumes import Volumes
from mesh_local.machinery.objects import Object, dig, namespace_of, uid_of

logger = logging.getLogger(__name__)

CONFIG_RETRY_S = 10.0
NEVER = float("inf")
TERMINATION_MESSAGE_BYTES = 4096
TERMINATION_LOG_LINES = 80
TERMINATION_LOG_BYTES = 2048


@dataclass(slots=True)
class Sandbox:
    """The pod's place in the network, and the files that its containers share."""

    netns: str
    ips: tuple[str, ...]
    files: dict[str, Path]


@dataclass(slots=True)
class Containers:
    """The containers of one pod.

    Args:
        pod: gives the newest version of the pod.
        nursery: of the pod's task.
        changed: to be called after a change of a record.
    """

    host: Host
    pod: Callable[[], Object]
    volumes: Volumes
    nursery: trio.Nursery
    changed: Callable[[], None]
    sandbox: Sandbox | None = None
    live: dict[str, Live] = field(default_factory=dict)

    def event(self, record: Record, type: Literal["Normal", "Warning"], reason: str, message: str) -> None:
        self.host.recorder.event(self.pod(), type, reason, message, field_path=field_path(record))

    async def start(self, record: Record) -> None:
        """Start one container, and run its postStart hook."""
        now = trio.current_time()
        attempt = record.attempt + 1
        try:
            spec = self._spec(record, attempt)
        except container_spec.NoCommand as exc:
            self._refuse(record, "ErrImageNeverPull", str(exc), NEVER)
            self.event(record, "Warning", "ErrImageNeverPull", str(exc))
            self.event(record, "Warning", "Failed", "Error: ErrImageNeverPull")
            return
        except ConfigError as exc:
            self._refuse(record, "CreateContainerConfigError", str(exc), now + CONFIG_RETRY_S)
            self.event(record, "Warning", "Failed", f"Error: {exc}")
            return
        backoff = lifecycle.next_backoff(record, self.host.options.backoff)
        uid = uid_of(self.pod())
        try:
            container = await self.host.runtime.start(uid, record.name, attempt, spec)
        except StartFailed as exc:
            self._begin(record, attempt, backoff)
            message = f"failed to create containerd task: {exc}"
            self.event(record, "Warning", "Failed", f"Error: {message}")
            end = datetime.now(UTC)
            record.state = Ended(128, "StartError", container_id(uid, record), None, end, message)
            record.ended_mono = trio.current_time()
            self.changed()
            return
        self._begin(record, attempt, backoff)
        image = record.spec.get("image", "")
        text = f'Container image "{image}" is not pulled: the command runs from the host\'s files'
        self.event(record, "Normal", "Pulled", text)
        self.event(record, "Normal", "Created", "Container created")
        self.event(record, "Normal", "Started", "Container started")
        live = self.adopt(record, container)
        if await self._post_start(record, live):
            self.count_as_running(live)

    def _spec(self, record: Record, attempt: int) -> Object:
        if self.sandbox is None:
            raise ConfigError("the pod has no network")
        pod, host = self.pod(), self.host
        around = container_spec.Surroundings(
            options=host.options,
            node=host.node,
            netns=self.sandbox.netns,
            hostname=hostname(pod, host.options),
            pod_ips=self.sandbox.ips,
            lookup=host.lookup(namespace_of(pod)),
            services=service_env(pod, host.sources.services.list()),
            volumes=self.volumes,
            host_mounts=host.host_mounts,
            files=self.sandbox.files,
            termination_log=host.runtime.directory(uid_of(pod), record.name, attempt) / "termination-log",
        )
        return container_spec.build(pod, record, around)

    def _refuse(self, record: Record, reason: str, message: str, retry: float) -> None:
        if isinstance(record.state, Ended):
            record.last = record.state
        record.state = Waiting(reason, message)
        record.retry_mono = retry
        self.changed()

    def _begin(self, record: Record, attempt: int, backoff: float) -> None:
        if isinstance(record.state, Ended):
            record.last = record.state
        record.state = Waiting()
        record.attempt, record.backoff_s = attempt, backoff
        record.started = record.ready = False
        record.started_mono = trio.current_time()

    def adopt(self, record: Record, container: Container) -> Live:
        """Watch a container that runs."""
        target = probes.Target(
            self.sandbox.ips[0] if self.sandbox else str(dig(self.pod(), "status", "podIP", default="")),
            record.spec,
            container,
            self.host.runtime,
            self.host.dialer,
        )
        live = Live(record, container, target, self.host.runtime)
        self.live[record.name] = live
        self.nursery.start_soon(self._watch, live)
        return live

    def count_as_running(self, live: Live) -> None:
        """From now on the container runs, as far as the status and its probes are concerned."""
        record = live.record
        if live.exited.is_set():
            return
        record.state = Running(container_id(uid_of(self.pod()), record), live.container.started_at)
        record.started = record.started or "startupProbe" not in record.spec
        record.ready = record.ready or (record.started and "readinessProbe" not in record.spec)
        live.runs.set()
        self.changed()

    async def _post_start(self, record: Record, live: Live) -> bool:
        hook = dig(record.spec, "lifecycle", "postStart")
        if not hook:
            return True
        try:
            await _unless_exited(live, hook)
        except probes.CheckFailed as exc:
            logger.info("postStart of %s failed: %s", record.name, exc)
            self.event(record, "Warning", "FailedPostStartHook", "PostStartHook failed")
            await self.kill(live, "FailedPostStartHook", self.default_grace())
            return False
        return True

    async def _watch(self, live: Live) -> None:
        record = live.record
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._probe, live)
            exit_ = await self.host.runtime.wait(live.container)
            nursery.cancel_scope.cancel()
        record.state = Ended(
            exit_.code,
            exit_.reason or ("Completed" if exit_.code == 0 else "Error"),
            container_id(uid_of(self.pod()), record),
            live.container.started_at,
            exit_.finished_at,
            exit_.message or last_words(record.spec, live.container, exit_),
        )
        record.started = record.ready = False
        record.ended_mono = trio.current_time()
        del self.live[record.name]
        live.exited.set()
        self.changed()

    async def _probe(self, live: Live) -> None:
        await live.runs.wait()
        record = live.record

        def failed(kind: Kind, message: str) -> None:
            self.event(record, "Warning", "Unhealthy", f"{kind} probe failed: {message}")

        def changed(kind: Kind, good: bool) -> None:
            if kind == "Readiness":
                record.ready = good
            elif good:
                record.started = True
            elif not live.stopping:
                text = f"Container {record.name} failed {kind.lower()} probe, will be restarted"
                seconds = dig(record.spec, f"{kind.lower()}Probe", "terminationGracePeriodSeconds")
                grace = None if seconds is None else Grace(float(seconds))
                self.kill_soon(live, text, grace)
            self.changed()

        async def check(probe: Object) -> None:
            await probes.check(probe, live.target, probes.timeout_of(probe))

        spec = record.spec
        if record.started:  # adopted: its startup probe has passed before
            spec = {key: value for key, value in spec.items() if key != "startupProbe"}
        await run_probes(spec, record.started_mono, check, Listener(failed, changed), ready=record.ready)

    def default_grace(self) -> Grace:
        return Grace(float(dig(self.pod(), "spec", "terminationGracePeriodSeconds", default=30)))

    def kill_soon(self, live: Live, message: str, grace: Grace | None = None) -> None:
        """Begin to stop one container because of itself, not of the pod."""
        self.nursery.start_soon(self.kill, live, message, grace or self.default_grace())

    async def kill(self, live: Live, message: str, grace: Grace) -> None:
        """Stop one container because of itself, not of the pod."""
        self.event(live.record, "Normal", "Killing", message)
        await stop(live, grace, self.event)

    async def kill_all(self, groups: list[list[Record]], grace: Grace) -> None:
        """Stop containers: all preStop hooks at once, then group after group as the ones before are gone."""
        lives = [[self.live[r.name] for r in group if r.name in self.live] for group in groups]
        async with trio.open_nursery() as nursery:
            for at, group in enumerate(lives):
                before = [live.exited for earlier in lives[:at] for live in earlier]
                for live in group:
                    self.event(live.record, "Normal", "Killing", f"Stopping container {live.record.name}")
                    nursery.start_soon(stop, live, grace, self.event, before)


async def _unless_exited(live: Live, hook: Object) -> None:
    """Run a hook for as long as the container lives. Raises CheckFailed."""
    failure = ""
    async with trio.open_nursery() as nursery:

        async def give_up() -> None:
            await live.exited.wait()
            nursery.cancel_scope.cancel()

        nursery.start_soon(give_up)
        try:
            await probes.run_handler(hook, live.target, 0)
        except probes.CheckFailed as exc:
            failure = str(exc)
        nursery.cancel_scope.cancel()
    if failure:
        raise probes.CheckFailed(failure)


def container_id(uid: str, record: Record) -> str:
    """Names one attempt of one container."""
    digest = hashlib.sha256(f"{uid}/{record.name}/{record.attempt}".encode()).hexdigest()
    return f"triomesh://{digest}"


def last_words(spec: Object, container: Container, exit_: Exit) -> str:
    """The container's termination message."""
    if exit_.reason == UNKNOWN_REASON:
        return exit_.message
    try:
        with open(container.directory / "termination-log", "rb") as file:
            text = file.read(TERMINATION_MESSAGE_BYTES).decode(errors="replace")
    except OSError:
        text = ""  # the container may remove the file
    if not text and exit_.code != 0 and spec.get("terminationMessagePolicy") == "FallbackToLogsOnError":
        text = last_lines(container.log, TERMINATION_LOG_LINES)[-TERMINATION_LOG_BYTES:].decode(
            errors="replace"
        )
    return text

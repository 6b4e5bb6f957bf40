"""One pod on the node, from its arrival to its removal.

The worker looks at what is, does the next step that `lifecycle` names, writes the status, and waits for a
change.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import trio

from mesh_local.kubelet import lifecycle, publisher, recovery, sandbox, status
from mesh_local.kubelet.containers import Containers, Sandbox
from mesh_local.kubelet.host import Host
from mesh_local.kubelet.records import (
    UNKNOWN_CODE,
    UNKNOWN_MESSAGE,
    UNKNOWN_REASON,
    Ended,
    Record,
    Waiting,
    records_of,
)
from mesh_local.kubelet.stopping import Grace
from mesh_local.kubelet.types import VolumeError
from mesh_local.kubelet.volumes import Volumes
from mesh_local.machinery.errors import ApiError
from mesh_local.machinery.objects import (
    Object,
    annotations_of,
    dig,
    is_deleting,
    meta,
    name_of,
    namespace_of,
    parse_time,
    uid_of,
)
from mesh_local.network import faults
from mesh_local.network.types import NetworkError, PacketFaults

logger = logging.getLogger(__name__)

RETRY_S = 2.0
# Between attempts to make a volume; doubled. A change of what it is made from tries again at once.
MOUNT_RETRY_S = 0.5
MOUNT_RETRY_MAX_S = 122.0
NETWORK_DEADLINE_S = 60.0
# A pod that was removed from the API without a grace period still gets this (kubelet's minimum).
FORCED_GRACE_S = 1.0


@dataclass(slots=True)
class _Start:
    """The start of containers under way."""

    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    done: trio.Event = field(default_factory=trio.Event)


class PodWorker:
    """One pod.

    Args:
        pod: as the API has it.
    """

    def __init__(self, host: Host, pod: Object) -> None:
        self._host = host
        self._pod = pod
        self._uid = uid_of(pod)
        self._records = records_of(pod)
        self._policy = str(dig(pod, "spec", "restartPolicy", default="Always"))
        self._wake = trio.Event()
        self._gone = False
        self._stale_volumes = False
        self._volumes_ready = False
        self._mount_delay = MOUNT_RETRY_S
        self._ended = False
        self._reason = self._message = ""
        self._grace: Grace | None = None
        self._starting: _Start | None = None
        started = dig(pod, "status", "startTime")
        self._start_time = parse_time(started) if started else datetime.now(UTC)
        self._volumes = Volumes(
            host.runtime.pod_directory(self._uid) / "volumes",
            host.client,
            pod,
            host.node,
            host.lookup(namespace_of(pod)),
        )
        self._containers: Containers

    # What the kubelet tells the worker.

    def update(self, pod: Object) -> None:
        """Take over a newer version of the pod."""
        if publisher.version(pod) < publisher.version(self._pod):
            return
        labels_changed = any(meta(pod).get(k) != meta(self._pod).get(k) for k in ("labels", "annotations"))
        self._stale_volumes = self._stale_volumes or labels_changed
        self._pod = pod
        if self._grace is not None and is_deleting(pod):
            self._grace.shorten(self._grace_seconds())
        self.changed()

    def removed(self) -> None:
        """The pod is not in the API any more."""
        self._gone = True
        if self._grace is not None:
            self._grace.shorten(FORCED_GRACE_S)
        self.changed()

    def objects_changed(self) -> None:
        """A ConfigMap or Secret of the pod's namespace has changed."""
        self._stale_volumes = True
        for record in self._records:
            if isinstance(record.state, Waiting) and record.state.reason == "CreateContainerConfigError":
                record.retry_mono = trio.current_time()
        self.changed()

    @property
    def namespace(self) -> str:
        return namespace_of(self._pod)

    def changed(self) -> None:
        self._wake.set()

    # The pod's life.

    async def run(self) -> None:
        """Run the pod until it has been removed from the API and the node."""
        async with trio.open_nursery() as nursery:
            self._containers = Containers(self._host, lambda: self._pod, self._volumes, nursery, self.changed)
            if dig(self._pod, "status", "phase") in ("Succeeded", "Failed"):
                await self._wait_for_removal()
            else:
                await self._live(nursery)
            await self._clean_up()
            nursery.cancel_scope.cancel()

    async def _live(self, nursery: trio.Nursery) -> None:
        recovery.restore(self._host, self._pod, self._records)
        await self._run_containers(nursery)
        await self._stop()
        self._settle()
        self._ended = True
        # The last status first: with the network goes the address, which another pod may get.
        await self._publish_surely()
        await self._detach()
        if not (self._gone or is_deleting(self._pod)):
            await self._wait_for_removal()

    async def _run_containers(self, nursery: trio.Nursery) -> None:
        """Do what the pod wants until it has ended or is to end."""
        while True:
            self._wake = trio.Event()
            if self._gone or is_deleting(self._pod):
                return
            self._take_images()
            now = trio.current_time()
            deadline = self._deadline(now)
            if deadline is not None and deadline <= now:
                self._reason = "DeadlineExceeded"
                self._message = "Pod was active on the node longer than the specified deadline"
                self._host.recorder.event(self._pod, "Normal", self._reason, self._message)
                return
            wakes = [deadline, await self._prepare()]
            plan = lifecycle.decide(self._records, self._policy, self._host.options.backoff, now)
            if plan.finish:
                return
            if plan.start and self._starting is None and self._is_prepared():
                self._starting = _Start()
                nursery.start_soon(self._start, plan.start, self._starting)
            self._report_backoff(now)
            wakes.append(plan.wake_at)
            if not await self._publish():
                wakes.append(now + RETRY_S)
            times = [at for at in wakes if at is not None]
            with trio.CancelScope(deadline=min(times, default=float("inf"))):
                await self._wake.wait()

    def _take_images(self) -> None:
        """The image is the one field of a container that may change; the container is then made anew."""
        for record, newest in zip(self._records, records_of(self._pod), strict=True):
            if newest.spec.get("image") == record.spec.get("image"):
                continue
            record.spec = newest.spec
            live = self._containers.live.get(record.name)
            if live is not None:
                text = f"Container {record.name} definition changed, will be restarted"
                self._containers.kill_soon(live, text)

    def _deadline(self, now: float) -> float | None:
        seconds = dig(self._pod, "spec", "activeDeadlineSeconds")
        if seconds is None:
            return None
        used = (datetime.now(UTC) - self._start_time).total_seconds()
        return now + float(seconds) - used

    async def _start(self, records: Sequence[Record], start: "_Start") -> None:
        with start.scope:
            for record in records:
                await self._containers.start(record)
        self._starting = None
        start.done.set()
        self.changed()

    def _report_backoff(self, now: float) -> None:
        """One event for each restart that has to wait."""
        for record in self._records:
            waits = lifecycle.is_backing_off(record, self._policy, self._host.options.backoff, now)
            if waits and record.reported_backoff != record.attempt:
                record.reported_backoff = record.attempt
                text = f"Back-off restarting failed container {record.name} in pod"
                pod = f"{name_of(self._pod)}_{namespace_of(self._pod)}({self._uid})"
                self._containers.event(record, "Warning", "BackOff", f"{text} {pod}")

    # The surroundings of the containers.

    async def _prepare(self) -> float | None:
        """Make the network and the volumes what they should be; when to try again, or to renew a token."""
        if self._containers.sandbox is None:
            if not dig(self._pod, "status", "containerStatuses"):
                await self._publish()  # the pod has arrived
            if not await self._attach():
                return trio.current_time() + RETRY_S
        now = trio.current_time()
        if not self._volumes_ready:
            try:
                await self._volumes.set_up()
            except VolumeError as exc:
                self._host.recorder.event(self._pod, "Warning", "FailedMount", str(exc))
                self._mount_delay = min(self._mount_delay * 2, MOUNT_RETRY_MAX_S)
                return now + self._mount_delay
            self._volumes_ready = True
            self._stale_volumes = False
        renew_at = self._volumes.renew_at
        if self._stale_volumes or (renew_at is not None and renew_at <= now):
            self._stale_volumes = False
            await self._volumes.refresh(self._pod)
        return self._volumes.renew_at

    def _is_prepared(self) -> bool:
        return self._containers.sandbox is not None and self._volumes_ready

    async def _attach(self) -> bool:
        options = self._host.options
        try:
            if dig(self._pod, "spec", "hostNetwork"):
                netns, ips = options.netns, options.node_ips
            else:
                with trio.fail_after(NETWORK_DEADLINE_S):
                    wanted = faults.of_annotations(annotations_of(self._pod))
                    attachment = await self._host.network.attach(self._uid)
                    if wanted != PacketFaults():
                        await self._host.network.set_faults(self._uid, wanted)
                netns, ips = attachment.netns, attachment.ips
            files = sandbox.write_files(
                self._pod, options, ips, self._host.runtime.pod_directory(self._uid) / "files"
            )
        except (NetworkError, OSError, trio.TooSlowError) as exc:
            text = f"Failed to create pod sandbox: {exc or 'the network took too long'}"
            self._host.recorder.event(self._pod, "Warning", "FailedCreatePodSandBox", text)
            return False
        self._containers.sandbox = Sandbox(netns, ips, files)
        self._volumes.set_ips(ips)
        recovery.adopt(self._host, self._pod, self._records, self._containers)
        return True

    async def _detach(self) -> None:
        if dig(self._pod, "spec", "hostNetwork"):
            return
        try:
            with trio.fail_after(NETWORK_DEADLINE_S):
                await self._host.network.detach(self._uid)
        except (NetworkError, OSError, trio.TooSlowError) as exc:
            logger.error("The network of pod %s cannot be removed: %s", name_of(self._pod), exc)

    # Its end.

    def _grace_seconds(self) -> float:
        if self._gone and not is_deleting(self._pod):
            return FORCED_GRACE_S
        default = dig(self._pod, "spec", "terminationGracePeriodSeconds", default=30)
        return float(dig(self._pod, "metadata", "deletionGracePeriodSeconds", default=default))

    async def _stop(self) -> None:
        """End all containers, and the start of one that is under way."""
        if self._starting is not None:
            self._starting.scope.cancel()
            await self._starting.done.wait()
        if self._containers.sandbox is None:
            recovery.adopt(self._host, self._pod, self._records, self._containers)
        self._grace = Grace(self._grace_seconds())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._publish_changes)
            await self._containers.kill_all(self._stop_order(), self._grace)
            nursery.cancel_scope.cancel()

    def _stop_order(self) -> list[list[Record]]:
        live = [r for r in self._records if r.name in self._containers.live]
        return lifecycle.stop_order(live)

    async def _publish_changes(self) -> None:
        """Write the status as containers end, but for the last, with which the pod ends too."""
        while True:
            self._wake = trio.Event()
            if self._containers.live:
                await self._publish()
            await self._wake.wait()

    def _settle(self) -> None:
        """What never ran when the pod ended counts as lost (the kubelet's TerminatePod)."""
        if not lifecycle.is_initialized(self._records):
            return
        for record in self._records:
            if record.role == "main" and isinstance(record.state, Waiting):
                record.state = Ended(UNKNOWN_CODE, UNKNOWN_REASON, message=UNKNOWN_MESSAGE)

    async def _wait_for_removal(self) -> None:
        """Stay while the pod, which has ended, is in the API: its logs can be read."""
        while not (self._gone or is_deleting(self._pod)):
            self._wake = trio.Event()
            if self._ended:
                await self._publish()
            await self._wake.wait()

    async def _clean_up(self) -> None:
        await self._host.runtime.remove_pod(self._uid)
        await self._detach()
        delay = RETRY_S
        while not self._gone:
            try:
                await publisher.remove(self._host.client, self._pod)
                return
            except (ApiError, trio.TooSlowError) as exc:
                logger.warning("Pod %s cannot be removed from the API: %s", name_of(self._pod), exc)
            await trio.sleep(delay)
            delay = min(delay * 2, 60.0)

    # Its status.

    def _status(self, pod: Object) -> Object:
        box = self._containers.sandbox
        known = tuple(item["ip"] for item in dig(pod, "status", "podIPs", default=[]))
        return status.build(
            pod,
            status.View(
                records=self._records,
                host_ips=self._host.options.node_ips,
                pod_ips=box.ips if box is not None else known,
                start_time=self._start_time,
                sandbox=box is not None,
                ended=self._ended,
                backoff=self._host.options.backoff,
                now=datetime.now(UTC),
                mono=trio.current_time(),
                reason=self._reason,
                message=self._message,
            ),
        )

    async def _publish(self) -> bool:
        """Write the status if it has changed; False if that failed."""
        if self._gone:
            return True
        try:
            written = await publisher.publish(self._host.client, self._pod, self._status)
        except publisher.PodGone:
            self.removed()
            return True
        except (ApiError, trio.TooSlowError) as exc:
            logger.warning("The status of pod %s is not written: %s", name_of(self._pod), exc)
            return False
        if publisher.version(written) > publisher.version(self._pod):
            self.update(written)
        return True

    async def _publish_surely(self) -> None:
        """Write the last status, however long that takes."""
        while True:
            if await self._publish():
                return
            await trio.sleep(RETRY_S)

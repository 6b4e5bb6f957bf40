"""Jobs: run pods until enough have succeeded, or too many have failed."""

from collections.abc import Sequence

import trio

from mesh_local.controllers.decisions import job_indexes, jobs, pods
from mesh_local.controllers.decisions.ownership import claim
from mesh_local.controllers.informer import Key, key_of
from mesh_local.controllers.queue import WorkQueue
from mesh_local.controllers.runner import Controller
from mesh_local.controllers.tools import (
    CONTROLLER,
    Tools,
    adopt,
    controlled_by,
    delete_quietly,
    index_owners,
    release,
)
from mesh_local.machinery.errors import ApiError
from mesh_local.machinery.objects import (
    Object,
    condition,
    controller_of,
    dig,
    is_deleting,
    meta,
    name_of,
    namespace_of,
    owner_reference,
    uid_of,
)
from mesh_local.machinery.selectors import LabelSelector


class JobController:
    """Creates and deletes pods, counts those that have ended, and writes the status."""

    def __init__(self, tools: Tools) -> None:
        self._client = tools.client
        self._recorder = tools.recorder
        self._now = tools.now
        self._jobs = tools.informers.of("jobs.batch")
        self._pods = tools.informers.of("pods")
        index_owners(self._pods)
        self._queue: WorkQueue[Key] = WorkQueue(lambda: map(key_of, self._jobs.list()))
        self._orphans: WorkQueue[Key] = WorkQueue(lambda: map(key_of, self._pods.list()))
        self._jobs.on_change(self._job_changed)
        self._pods.on_change(self._pod_changed)

    def controllers(self) -> tuple[Controller, Controller]:
        informers = (self._jobs, self._pods)
        return (
            Controller("job-controller", self._queue, self._reconcile, informers),
            Controller("job-controller (orphans)", self._orphans, self._reconcile_orphan, informers),
        )

    def _job_changed(self, old: Object | None, new: Object | None) -> None:
        self._queue.add(key_of(new or old or {}))
        if new is None and old is not None:
            for pod in self._pods.by_index(CONTROLLER, uid_of(old)):
                self._orphans.add(key_of(pod))

    def _pod_changed(self, old: Object | None, new: Object | None) -> None:
        for pod in (old, new):
            owner = controller_of(pod) if pod else None
            if pod is not None and owner is not None and owner.get("kind") == "Job":
                self._queue.add((namespace_of(pod), owner["name"]))
        if new is not None and jobs.is_tracked(new):
            self._orphans.add(key_of(new))

    async def _reconcile(self, key: Key) -> float | None:
        namespace, name = key
        job = self._jobs.get(name, namespace)
        if job is None or is_deleting(job):
            return None
        owned = await self._claim(job)
        if jobs.is_finished(job):
            await self._untrack([p for p in owned if jobs.is_tracked(p)])
            return None
        status = jobs.observed_status(job, owned, self._now())
        current = {**job, "status": status}
        if not (jobs.to_release(current, owned) or jobs.ending(current) or status["uncountedTerminatedPods"]):
            # Pods first: one write then shows them together with what else has changed.
            return await self._apply(job, jobs.plan_pods(current, owned, self._now()))
        job = await self._write(job, status)
        await self._untrack(jobs.to_release(job, owned))
        tracked = {uid_of(p) for p in self._owned(job) if jobs.is_tracked(p)}
        job = await self._write(job, jobs.settled_status(job, tracked, self._now()))
        if jobs.is_finished(job):
            return None
        return await self._apply(job, jobs.plan_pods(job, self._owned(job), self._now()))

    async def _apply(self, job: Object, plan: jobs.Pods) -> float | None:
        try:
            for pod in plan.delete:
                await self._delete(job, pod)
            if plan.create:
                await self._create(job, plan.indexes or (None,) * plan.create)
        except ApiError:
            await self._write_observed(job)
            raise
        await self._write_observed(job)
        return plan.again_s

    async def _write_observed(self, job: Object) -> None:
        await self._write(job, jobs.observed_status(job, self._owned(job), self._now()))

    def _owned(self, job: Object) -> list[Object]:
        return list(self._pods.by_index(CONTROLLER, uid_of(job)))

    async def _claim(self, job: Object) -> list[Object]:
        selector = LabelSelector.from_object(dig(job, "spec", "selector"))
        found = claim(job, selector, controlled_by(self._pods, job))
        for pod in found.release:
            await release(self._client, self._pods, job, pod)
        return found.owned + [await adopt(self._client, self._pods, job, p) for p in found.adopt]

    async def _untrack(self, owned: Sequence[Object]) -> None:
        for pod in owned:
            await self._remove_finalizer(pod)

    async def _remove_finalizer(self, pod: Object) -> None:
        finalizer = {"$deleteFromPrimitiveList/finalizers": [jobs.FINALIZER]}
        patch = {"metadata": {"uid": uid_of(pod), **finalizer}}
        try:
            found = await self._client.patch("pods", name_of(pod), namespace_of(pod), patch, type="strategic")
        except ApiError as exc:
            if exc.code not in (404, 409):
                raise
            return
        self._pods.wrote(found)

    async def _create(self, job: Object, indexes: Sequence[int | None]) -> None:
        """Create a pod for each index; None: one without.

        Raises:
            ApiError: the first refusal, after all were tried.
        """
        refused: list[ApiError] = []

        async def create(index: int | None) -> None:
            template = dig(job, "spec", "template", default={})
            pod = pods.pod_from_template(template, f"{name_of(job)}-", owner_reference(job))
            pod["metadata"]["finalizers"] = [*(meta(pod).get("finalizers") or ()), jobs.FINALIZER]
            if index is not None:
                pod = job_indexes.indexed_pod(job, pod, index)
            try:
                created = await self._client.create("pods", pod, namespace_of(job))
            except ApiError as exc:
                refused.append(exc)
                self._recorder.event(job, "Warning", "FailedCreate", f"Error creating: {exc.message}")
                return
            self._pods.wrote(created)
            self._recorder.event(job, "Normal", "SuccessfulCreate", f"Created pod: {name_of(created)}")

        async with trio.open_nursery() as nursery:
            for index in indexes:
                nursery.start_soon(create, index)
        if refused:
            raise refused[0]

    async def _delete(self, job: Object, pod: Object) -> None:
        """Delete a pod. Unless the Job has failed, it must not count as a failure: its mark goes first."""
        by = jobs.ending(job)
        if by is None or by["type"] != "FailureTarget":
            await self._remove_finalizer(pod)
        if await delete_quietly(self._client, self._pods, pod):
            self._recorder.event(job, "Normal", "SuccessfulDelete", f"Deleted pod: {name_of(pod)}")

    async def _write(self, job: Object, status: Object) -> Object:
        stored = self._jobs.get(name_of(job), namespace_of(job)) or job
        if status == (stored.get("status") or {}):
            return job
        written = await self._client.update("jobs.batch", {**job, "status": status}, subresource="status")
        self._jobs.wrote(written)
        self._announce(stored, written)
        return written

    def _announce(self, before: Object, after: Object) -> None:
        """Record what a status write has decided."""

        def became(type_: str, status: str = "True") -> Object | None:
            old, new = condition(before, type_), condition(after, type_)
            changed = new is not None and (old is None or old.get("status") != new.get("status"))
            return new if changed and new and new.get("status") == status else None

        if failed := became("Failed"):
            self._recorder.event(after, "Warning", failed["reason"], failed["message"])
        if became("Complete"):
            self._recorder.event(after, "Normal", "Completed", "Job completed")
        if became("Suspended"):
            self._recorder.event(after, "Normal", "Suspended", "Job suspended")
        if became("Suspended", "False"):
            self._recorder.event(after, "Normal", "Resumed", "Job resumed")

    async def _reconcile_orphan(self, key: Key) -> None:
        """Let go of a pod whose Job is gone or will not count it any more."""
        namespace, name = key
        pod = self._pods.get(name, namespace)
        if pod is None or not jobs.is_tracked(pod):
            return
        owner = controller_of(pod)
        job = self._jobs.get(owner["name"], namespace) if owner else None
        if owner is None or job is None or uid_of(job) != owner["uid"] or is_deleting(job):
            await self._remove_finalizer(pod)


class TtlController:
    """Deletes finished Jobs after ttlSecondsAfterFinished."""

    def __init__(self, tools: Tools) -> None:
        self._client = tools.client
        self._now = tools.now
        self._jobs = tools.informers.of("jobs.batch")
        self._queue: WorkQueue[Key] = WorkQueue(lambda: map(key_of, self._jobs.list()))
        self._jobs.on_change(self._changed)

    def controller(self) -> Controller:
        return Controller(
            "ttl-after-finished-controller", self._queue, self._reconcile, (self._jobs,), workers=1
        )

    def _changed(self, _old: Object | None, new: Object | None) -> None:
        if new is not None and jobs.seconds_to_expiry(new, self._now()) is not None:
            self._queue.add(key_of(new))

    async def _reconcile(self, key: Key) -> float | None:
        namespace, name = key
        job = self._jobs.get(name, namespace)
        left = jobs.seconds_to_expiry(job, self._now()) if job and not is_deleting(job) else None
        if job is None or left is None:
            return None
        if left <= 0:
            await delete_quietly(self._client, self._jobs, job)
            return None
        return left

"""Deployments: one ReplicaSet for each pod template, and the way from one to the next."""

from collections.abc import Sequence
from typing import Literal

from mesh_local.controllers.decisions import deployment_status, pods, revisions, rollout
from mesh_local.controllers.decisions.ownership import claim
from mesh_local.controllers.decisions.sizes import has_deadline, is_rolling, replicas_of
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
    annotations_of,
    condition,
    controller_of,
    copy,
    dig,
    is_deleting,
    labels_of,
    name_of,
    namespace_of,
    uid_of,
)
from mesh_local.machinery.selectors import LabelSelector

Sets = list[Object]


class DeploymentController:
    """Rolls Deployments out, scales them, and writes their status."""

    def __init__(self, tools: Tools) -> None:
        self._client = tools.client
        self._recorder = tools.recorder
        self._now = tools.now
        self._deployments = tools.informers.of("deployments.apps")
        self._sets = tools.informers.of("replicasets.apps")
        self._pods = tools.informers.of("pods")
        index_owners(self._sets)
        index_owners(self._pods)
        self._queue: WorkQueue[Key] = WorkQueue(lambda: map(key_of, self._deployments.list()))
        self._deployments.on_change(lambda old, new: self._queue.add(key_of(new or old or {})))
        self._sets.on_change(self._set_changed)
        self._pods.on_change(self._pod_changed)

    def controller(self) -> Controller:
        return Controller(
            "deployment-controller",
            self._queue,
            self._reconcile,
            (self._deployments, self._sets, self._pods),
        )

    def _set_changed(self, old: Object | None, new: Object | None) -> None:
        for replica_set in (old, new):
            owner = controller_of(replica_set) if replica_set else None
            if replica_set is not None and owner is not None and owner.get("kind") == "Deployment":
                self._queue.add((namespace_of(replica_set), owner["name"]))
        if new is not None and not controller_of(new) and not is_deleting(new):
            for deployment in self._deployments.list(namespace_of(new)):
                if _selector(deployment).matches(labels_of(new)):
                    self._queue.add(key_of(deployment))

    def _pod_changed(self, old: Object | None, new: Object | None) -> None:
        """Recreate waits for the end of the last old pod, which no ReplicaSet shows."""
        if old is None or (new is not None and not pods.is_finished(new)):
            return
        owner = controller_of(old)
        replica_set = self._sets.get(owner["name"], namespace_of(old)) if owner else None
        above = controller_of(replica_set) if replica_set else None
        deployment = self._deployments.get(above["name"], namespace_of(old)) if above else None
        if deployment is not None and not is_rolling(deployment):
            self._queue.add(key_of(deployment))

    async def _reconcile(self, key: Key) -> float | None:
        namespace, name = key
        deployment = self._deployments.get(name, namespace)
        if deployment is None:
            return None
        selector = _selector(deployment)
        if selector.empty:
            message = "This deployment is selecting all pods. A non-empty selector is required."
            self._event(deployment, "Warning", "SelectingAll", message)
            return None
        sets = await self._claim(deployment, selector)
        new = revisions.current_set(deployment, sets)
        if is_deleting(deployment):
            await self._write_observed(deployment, sets, new)
            return None
        noted = deployment_status.paused_condition(deployment, self._now())
        if noted is not None:
            deployment = await self._write(deployment, deployment_status.with_condition(deployment, noted))
        paused = bool(dig(deployment, "spec", "paused", default=False))
        if paused or rollout.is_scaling(deployment, sets):
            await self._scale(deployment, sets, new, paused=paused)
            return None
        if is_rolling(deployment):
            return await self._roll(deployment, sets, new)
        return await self._recreate(deployment, sets, new)

    async def _claim(self, deployment: Object, selector: LabelSelector) -> Sets:
        found = claim(deployment, selector, controlled_by(self._sets, deployment))
        for replica_set in found.release:
            await release(self._client, self._sets, deployment, replica_set)
        return found.owned + [await adopt(self._client, self._sets, deployment, s) for s in found.adopt]

    async def _scale(self, deployment: Object, sets: Sets, new: Object | None, *, paused: bool) -> None:
        if new is not None:
            deployment, new = await self._sync_current(deployment, sets, new)
            sets = _with(sets, new)
        plan = rollout.plan_scale(deployment, sets, new)
        sets = await self._apply(deployment, sets, plan)
        if paused:
            await self._clean_up(deployment, sets, new)
        await self._write_observed(deployment, sets, new and _same(new, sets))

    async def _roll(self, deployment: Object, sets: Sets, new: Object | None) -> float | None:
        deployment, new = await self._current(deployment, sets, new)
        sets = _with(sets, new)
        plan = rollout.plan_rollout(deployment, sets, new)
        return await self._step(deployment, sets, new, plan)

    async def _recreate(self, deployment: Object, sets: Sets, new: Object | None) -> float | None:
        if new is not None:
            deployment, new = await self._sync_current(deployment, sets, new)
            sets = _with(sets, new)
        plan = rollout.plan_recreate(deployment, sets, new)
        if not plan and not self._old_pods_run(sets, new):
            deployment, new = await self._current(deployment, sets, new)
            sets = _with(sets, new)
            if replicas_of(new) != replicas_of(deployment):
                plan = [rollout.Scale(new, replicas_of(deployment))]
        return await self._step(deployment, sets, new, plan)

    async def _step(
        self, deployment: Object, sets: Sets, new: Object | None, plan: Sequence[rollout.Scale]
    ) -> float | None:
        """Apply a plan, write the status, and clean up after a rollout that is complete."""
        sets = await self._apply(deployment, sets, plan)
        new = new and _same(new, sets)
        if not plan and deployment_status.is_complete(deployment, deployment.get("status") or {}):
            await self._clean_up(deployment, sets, new)
        status = deployment_status.rollout_status(deployment, sets, new, self._now())
        await self._write(deployment, status)
        left = deployment_status.seconds_to_deadline(deployment, status["conditions"], self._now())
        # A second more, so that the deadline, kept in whole seconds, has certainly passed.
        return left + 1 if left is not None and left >= 0 else None

    def _old_pods_run(self, sets: Sets, new: Object | None) -> bool:
        return any(
            not pods.is_finished(pod)
            for s in sets
            if new is None or uid_of(s) != uid_of(new)
            for pod in self._pods.by_index(CONTROLLER, uid_of(s))
        )

    async def _current(self, deployment: Object, sets: Sets, new: Object | None) -> tuple[Object, Object]:
        """The Deployment and the ReplicaSet of its template, which is created where it is missing."""
        if new is not None:
            return await self._sync_current(deployment, sets, new)
        size = rollout.initial_size(deployment, sets)
        wanted = revisions.new_set(deployment, sets, size)
        try:
            new = await self._client.create("replicasets.apps", wanted, namespace_of(deployment))
        except ApiError as exc:
            await self._create_failed(deployment, wanted, exc)
            raise
        self._sets.wrote(new)
        if size:
            message = f"Scaled up replica set {name_of(new)} from 0 to {size}"
            self._event(deployment, "Normal", "ScalingReplicaSet", message)
        message = f'Created new replica set "{name_of(new)}"'
        return await self._note_current(deployment, new, deployment_status.CREATED, message), new

    async def _create_failed(self, deployment: Object, wanted: Object, error: ApiError) -> None:
        """Note why the ReplicaSet could not be created; a name that is taken changes the hash."""
        status = copy(dig(deployment, "status", default={}))
        if error.reason == "AlreadyExists":
            taken = await self._client.get("replicasets.apps", name_of(wanted), namespace_of(wanted))
            owner = controller_of(taken)
            if owner is not None and owner.get("uid") == uid_of(deployment):
                # Our own, which the copy does not show yet.
                self._sets.wrote(taken)
                return
            status["collisionCount"] = int(status.get("collisionCount", 0)) + 1
        elif has_deadline(deployment):
            message = f'Failed to create new replica set "{name_of(wanted)}": {error.message}'
            said = deployment_status.progressing(
                "False", deployment_status.CREATE_ERROR, message, self._now()
            )
            status = deployment_status.with_condition(deployment, said)
            self._event(deployment, "Warning", deployment_status.CREATE_ERROR, message)
        await self._write(deployment, status)

    async def _sync_current(self, deployment: Object, sets: Sets, new: Object) -> tuple[Object, Object]:
        """Bring the annotations and minReadySeconds of the current ReplicaSet up to date."""
        old = [s for s in sets if uid_of(s) != uid_of(new)]
        annotations = revisions.current_annotations(deployment, new, old)
        min_ready = dig(deployment, "spec", "minReadySeconds", default=0)
        if annotations != annotations_of(new) or min_ready != dig(new, "spec", "minReadySeconds", default=0):
            wanted = copy(new)
            wanted["metadata"]["annotations"] = annotations
            wanted["spec"]["minReadySeconds"] = min_ready
            new = await self._client.update("replicasets.apps", wanted)
            self._sets.wrote(new)
        message = f'Found new replica set "{name_of(new)}"'
        return await self._note_current(deployment, new, deployment_status.FOUND, message), new

    async def _note_current(self, deployment: Object, new: Object, reason: str, message: str) -> Object:
        """Give the Deployment the revision of its ReplicaSet, and Progressing where there is none yet."""
        status = deployment.get("status") or {}
        created = reason == deployment_status.CREATED
        if has_deadline(deployment) and (created or condition(deployment, "Progressing") is None):
            said = deployment_status.progressing("True", reason, message, self._now())
            status = deployment_status.with_condition(deployment, said)
        revision = annotations_of(new).get(revisions.REVISION, "")
        if annotations_of(deployment).get(revisions.REVISION) != revision:
            annotations = {**annotations_of(deployment), revisions.REVISION: revision}
            metadata = {**deployment["metadata"], "annotations": annotations}
            deployment = {**deployment, "metadata": metadata}
            return await self._write(deployment, status, always=True)
        return await self._write(deployment, status)

    async def _apply(self, deployment: Object, sets: Sets, plan: Sequence[rollout.Scale]) -> Sets:
        """Give ReplicaSets their planned sizes; returns all of them as they are then."""
        for step in plan:
            before = replicas_of(step.set)
            annotations = {**annotations_of(step.set), **revisions.size_annotations(deployment)}
            if before == step.replicas and annotations == annotations_of(step.set):
                continue
            wanted = copy(step.set)
            wanted["spec"]["replicas"] = step.replicas
            wanted["metadata"]["annotations"] = annotations
            written = await self._client.update("replicasets.apps", wanted)
            self._sets.wrote(written)
            sets = _with(sets, written)
            if before != step.replicas:
                direction = "up" if step.replicas > before else "down"
                message = (
                    f"Scaled {direction} replica set {name_of(written)} from {before} to {step.replicas}"
                )
                self._event(deployment, "Normal", "ScalingReplicaSet", message)
        return sets

    async def _clean_up(self, deployment: Object, sets: Sets, new: Object | None) -> None:
        old = [s for s in sets if new is None or uid_of(s) != uid_of(new)]
        for replica_set in revisions.to_clean_up(deployment, old):
            await delete_quietly(self._client, self._sets, replica_set)

    async def _write_observed(self, deployment: Object, sets: Sets, new: Object | None) -> None:
        status = deployment_status.observed_status(deployment, sets, new, self._now())
        await self._write(deployment, status)

    async def _write(self, deployment: Object, status: Object, *, always: bool = False) -> Object:
        """Write the status where it has changed; returns the Deployment as it is then."""
        if not always and status == (deployment.get("status") or {}):
            return deployment
        written = await self._client.update(
            "deployments.apps", {**deployment, "status": status}, subresource="status"
        )
        self._deployments.wrote(written)
        return written

    def _event(
        self, deployment: Object, kind: Literal["Normal", "Warning"], reason: str, message: str
    ) -> None:
        self._recorder.event(deployment, kind, reason, message)


def _selector(deployment: Object) -> LabelSelector:
    return LabelSelector.from_object(dig(deployment, "spec", "selector"))


def _with(sets: Sets, one: Object) -> Sets:
    """The ReplicaSets with `one` in its newest form."""
    return [*(s for s in sets if uid_of(s) != uid_of(one)), one]


def _same(one: Object, sets: Sets) -> Object:
    return next(s for s in sets if uid_of(s) == uid_of(one))

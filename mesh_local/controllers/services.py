"""EndpointSlices and Endpoints: the pods that a Service's selector finds."""

from collections.abc import Callable

from mesh_local.controllers.decisions import pods as pod_facts
from mesh_local.controllers.decisions.endpoints import MANAGED_BY as ENDPOINTS_MANAGED_BY
from mesh_local.controllers.decisions.endpoints import endpoints_of
from mesh_local.controllers.decisions.slices import (
    MANAGED_BY,
    MANAGER,
    SERVICE_NAME,
    TriggerTimes,
    endpoint_slices,
    is_selected,
)
from mesh_local.controllers.informer import Informer, Key, key_of
from mesh_local.controllers.queue import WorkQueue
from mesh_local.controllers.runner import Controller
from mesh_local.controllers.tools import Tools, delete_quietly
from mesh_local.machinery.objects import (
    Object,
    dig,
    is_deleting,
    labels_of,
    name_of,
    namespace_of,
    uid_of,
)
from mesh_local.machinery.selectors import LabelSelector

SERVICE = "service"
# Pods that change together are taken together.
BATCH_S = 0.02


class _Services:
    """Finds the Services that a change concerns, and remembers what their changes go back to."""

    def __init__(self, tools: Tools) -> None:
        self.services = tools.informers.of("services")
        self.pods = tools.informers.of("pods")
        self.queue: WorkQueue[Key] = WorkQueue(lambda: map(key_of, self.services.list()))
        self._triggers: dict[str, TriggerTimes] = {}
        self.services.on_change(self._service_changed)
        self.pods.on_change(self._pod_changed)

    def own(self, informer: Informer, service_of: Callable[[Object], Key | None]) -> None:
        """Look at a Service again when what was written for it is changed."""

        def changed(old: Object | None, new: Object | None) -> None:
            if (key := service_of(new or old or {})) is not None:
                self.queue.add_after(key, BATCH_S)

        informer.on_change(changed)

    def selected(self, service: Object) -> list[Object]:
        selector = LabelSelector.from_labels(dig(service, "spec", "selector"))
        return [p for p in self.pods.list(namespace_of(service)) if selector.matches(labels_of(p))]

    def triggers(self, service: Object) -> TriggerTimes:
        return self._triggers.setdefault(uid_of(service), TriggerTimes())

    def _service_changed(self, old: Object | None, new: Object | None) -> None:
        if new is None and old is not None:
            self._triggers.pop(uid_of(old), None)
        self.queue.add(key_of(new or old or {}))

    def _pod_changed(self, old: Object | None, new: Object | None) -> None:
        if old is not None and new is not None and _facts(old) == _facts(new):
            return
        for service in self.services.list(namespace_of(new or old or {})):
            selector = LabelSelector.from_labels(dig(service, "spec", "selector"))
            if any(selector.matches(labels_of(pod)) for pod in (old, new) if pod is not None):
                self.queue.add_after(key_of(service), BATCH_S)


def _facts(pod: Object) -> tuple[object, ...]:
    """What of a pod shows in endpoints; the rest of it may change unseen."""
    return (
        labels_of(pod),
        pod_facts.pod_ips(pod),
        pod_facts.is_ready(pod),
        pod_facts.is_finished(pod),
        is_deleting(pod),
        dig(pod, "spec", "nodeName"),
    )


class EndpointSliceController:
    """Writes the EndpointSlices of Services with a selector."""

    def __init__(self, tools: Tools) -> None:
        self._client = tools.client
        self._services = _Services(tools)
        self._slices = tools.informers.of("endpointslices.discovery.k8s.io")
        self._slices.add_index(SERVICE, lambda s: map("/".join, filter(None, (_service_of(s),))))
        self._services.own(self._slices, _service_of)

    def controller(self) -> Controller:
        services = self._services
        informers = (services.services, services.pods, self._slices)
        return Controller("endpointslice-controller", services.queue, self._reconcile, informers)

    async def _reconcile(self, key: Key) -> None:
        namespace, name = key
        service = self._services.services.get(name, namespace)
        if service is None or is_deleting(service) or not is_selected(service):
            return
        existing = self._slices.by_index(SERVICE, f"{namespace}/{name}")
        selected = self._services.selected(service)
        trigger = self._services.triggers(service).next(service, selected)
        plan = endpoint_slices(service, selected, existing, trigger)
        resource = self._slices.resource
        for s in plan.create:
            self._slices.wrote(await self._client.create(resource, s, namespace))
        for s in plan.update:
            self._slices.wrote(await self._client.update(resource, s))
        for s in plan.delete:
            await delete_quietly(self._client, self._slices, s)


def _service_of(endpoint_slice: Object) -> Key | None:
    """The Service of a slice that this controller manages."""
    labels = labels_of(endpoint_slice)
    if labels.get(MANAGED_BY) != MANAGER or not labels.get(SERVICE_NAME):
        return None
    return namespace_of(endpoint_slice), labels[SERVICE_NAME]


class EndpointsController:
    """Writes the Endpoints of Services with a selector, under the Service's name."""

    def __init__(self, tools: Tools) -> None:
        self._client = tools.client
        self._services = _Services(tools)
        self._endpoints = tools.informers.of("endpoints")
        self._services.own(self._endpoints, self._selected_service)

    def controller(self) -> Controller:
        services = self._services
        informers = (services.services, services.pods, self._endpoints)
        return Controller("endpoint-controller", services.queue, self._reconcile, informers)

    def _selected_service(self, endpoints: Object) -> Key | None:
        """The Service, where it has a selector or is gone; others keep what their users write."""
        service = self._services.services.get(name_of(endpoints), namespace_of(endpoints))
        return key_of(endpoints) if service is None or is_selected(service) else None

    async def _reconcile(self, key: Key) -> None:
        namespace, name = key
        service = self._services.services.get(name, namespace)
        present = self._endpoints.get(name, namespace)
        if service is None:
            # Endpoints have no owner; those that a user wrote without a Service are the user's.
            if present is not None and labels_of(present).get(ENDPOINTS_MANAGED_BY):
                await delete_quietly(self._client, self._endpoints, present)
            return
        if not is_selected(service):
            return
        selected = self._services.selected(service)
        trigger = self._services.triggers(service).next(service, selected)
        wanted = endpoints_of(service, selected, present, trigger)
        if wanted is None:
            return
        if present is None:
            written = await self._client.create("endpoints", wanted, namespace)
        else:
            written = await self._client.update("endpoints", wanted)
        self._endpoints.wrote(written)

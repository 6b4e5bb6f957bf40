"""What every namespace gets: the ServiceAccount `default`, and the cluster's root certificate."""

from mesh_local.controllers.queue import WorkQueue
from mesh_local.controllers.runner import Controller
from mesh_local.controllers.tools import Tools
from mesh_local.machinery.objects import Object, copy, is_deleting, meta, name_of, namespace_of

DESCRIPTION = (
    "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such "
    "as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across "
    "distributions of Kubernetes clusters."
)


class PerNamespace:
    """Keeps one object of a fixed name and content in every namespace that is not going away.

    Args:
        wanted: the object, without its namespace; of its content `data` is kept as it is here.
    """

    def __init__(self, tools: Tools, resource: str, wanted: Object) -> None:
        self._client = tools.client
        self._wanted = wanted
        self._namespaces = tools.informers.of("namespaces")
        self._objects = tools.informers.of(resource)
        self._queue: WorkQueue[str] = WorkQueue(lambda: map(name_of, self._namespaces.list()))
        self._namespaces.on_change(self._namespace_changed)
        self._objects.on_change(self._object_changed)

    def controller(self, name: str) -> Controller:
        return Controller(name, self._queue, self._reconcile, (self._namespaces, self._objects), workers=1)

    def _is_right(self, present: Object) -> bool:
        return present.get("data") == self._wanted.get("data")

    def _namespace_changed(self, _old: Object | None, new: Object | None) -> None:
        if new is not None:
            self._queue.add(name_of(new))

    def _object_changed(self, old: Object | None, new: Object | None) -> None:
        obj = new or old or {}
        if name_of(obj) == name_of(self._wanted) and (new is None or not self._is_right(new)):
            self._queue.add(namespace_of(obj))

    async def _reconcile(self, namespace: str) -> None:
        found = self._namespaces.get(namespace)
        if found is None or is_deleting(found):
            return
        present = self._objects.get(name_of(self._wanted), namespace)
        resource = self._objects.resource
        if present is None:
            self._objects.wrote(await self._client.create(resource, copy(self._wanted), namespace))
        elif not self._is_right(present) and not is_deleting(present):
            wanted = {**copy(self._wanted), "metadata": {**meta(present), **meta(self._wanted)}}
            self._objects.wrote(await self._client.update(resource, wanted))


def service_accounts(tools: Tools) -> Controller:
    """Keeps the ServiceAccount `default`."""
    wanted = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}
    return PerNamespace(tools, "serviceaccounts", wanted).controller("service-account-controller")


def root_certificates(tools: Tools, root_ca_pem: str) -> Controller:
    """Keeps the ConfigMap with which pods verify the API server."""
    wanted = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": "kube-root-ca.crt",
            "annotations": {"kubernetes.io/description": DESCRIPTION},
        },
        "data": {"ca.crt": root_ca_pem},
    }
    return PerNamespace(tools, "configmaps", wanted).controller("root-ca-cert-publisher")

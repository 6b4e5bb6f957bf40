"""ServiceAccount: every Pod runs as one, and gets its token, the cluster's CA and its namespace as files."""

import random
from collections.abc import Iterable

from mesh_local.apiserver.admission.refusal import refused
from mesh_local.apiserver.types import Admission, Reader
from mesh_local.machinery.objects import Object, copy, random_suffix

MOUNT_PATH = "/var/run/secrets/kubernetes.io/serviceaccount"
_VOLUME = "kube-api-access-"
# An hour, and a little more: kubelets refresh such a token after 80 % of its life.
_TOKEN_SECONDS = 3607
_MODE = 0o644


class ServiceAccounts:
    """Sets the default account, refuses a missing one, and mounts the projected token volume."""

    def __init__(self, reader: Reader, rng: random.Random) -> None:
        self._reader = reader
        self._rng = rng

    async def mutate(self, request: Admission) -> None:
        pod = request.object
        if request.kind.resource != "pods" or request.subresource or pod is None:
            return
        if request.operation != "CREATE":
            return
        spec = pod["spec"]
        name = spec.get("serviceAccountName") or "default"
        spec["serviceAccountName"] = spec["serviceAccount"] = name
        account = self._reader.get("serviceaccounts", name, request.namespace)
        if account is None:
            raise refused(
                request,
                f"error looking up service account {request.namespace}/{name}: "
                f'serviceaccount "{name}" not found',
            )
        if _automounts(spec, account):
            self._mount_token(spec)
        if not spec.get("imagePullSecrets") and account.get("imagePullSecrets"):
            spec["imagePullSecrets"] = copy(account["imagePullSecrets"])

    async def validate(self, request: Admission) -> None: ...

    def _mount_token(self, spec: Object) -> None:
        """Mount the volume in every container that has nothing at its path; make it where it is needed."""
        volumes = spec.setdefault("volumes", [])
        name = _token_volume(volumes)
        made = name or f"{_VOLUME}{random_suffix(self._rng)}"
        mounted = [
            _mount(container, made)
            for key in ("initContainers", "containers")
            for container in spec.get(key) or ()
        ]
        if any(mounted) and not name:
            volumes.append(_volume(made))
        if not volumes:
            del spec["volumes"]


def _automounts(spec: Object, account: Object) -> bool:
    for source in (spec, account):
        choice = source.get("automountServiceAccountToken")
        if choice is not None:
            return bool(choice)
    return True


def _token_volume(volumes: Iterable[Object]) -> str:
    names = (v.get("name") or "" for v in volumes if v.get("projected") is not None)
    return next((n for n in names if n.startswith(_VOLUME)), "")


def _mount(container: Object, volume: str) -> bool:
    mounts = container.get("volumeMounts") or []
    if any(m.get("mountPath") == MOUNT_PATH for m in mounts):
        return False
    container["volumeMounts"] = [*mounts, {"name": volume, "readOnly": True, "mountPath": MOUNT_PATH}]
    return True


def _volume(name: str) -> Object:
    namespace = {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}
    sources: list[Object] = [
        {"serviceAccountToken": {"expirationSeconds": _TOKEN_SECONDS, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [namespace]}},
    ]
    return {"name": name, "projected": {"sources": sources, "defaultMode": _MODE}}

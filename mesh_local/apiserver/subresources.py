"""Subresources with a kind of their own: scale, binding, eviction, and those that others register."""

from collections.abc import Mapping

from mesh_local.apiserver.core import Core, Target, WriteOptions, Written
from mesh_local.apiserver.decode import Body, decode
from mesh_local.apiserver.delete import delete, read_options
from mesh_local.apiserver.types import Admission, Call, Endpoint, User
from mesh_local.apiserver.write import Edit, edit, overwrite
from mesh_local.kinds.base import Kind, ScalePaths
from mesh_local.kinds.reviews import DEFAULT_TOKEN_SECONDS
from mesh_local.machinery import errors
from mesh_local.machinery.errors import ApiError
from mesh_local.machinery.objects import Object, condition, copy, dig, is_deleting, meta, rfc3339
from mesh_local.machinery.selectors import LabelSelector

SCALE = Kind(
    kind="Scale",
    plural="scales",
    singular="scale",
    group="autoscaling",
    definition="io.k8s.api.autoscaling.v1.Scale",
)


def _default_token_request(obj: Object) -> None:
    """API defaulting, with the empty fields that Kubernetes shows to webhooks."""
    spec = obj.setdefault("spec", {})
    if spec.get("expirationSeconds") is None:
        spec["expirationSeconds"] = DEFAULT_TOKEN_SECONDS
    for key in ("audiences", "boundObjectRef"):
        spec.setdefault(key, None)
    obj["status"] = {"token": "", "expirationTimestamp": None}


_BODIES = {
    "Binding": Kind(
        kind="Binding", plural="bindings", singular="binding", definition="io.k8s.api.core.v1.Binding"
    ),
    "Eviction": Kind(
        kind="Eviction",
        plural="evictions",
        singular="eviction",
        group="policy",
        definition="io.k8s.api.policy.v1.Eviction",
    ),
    "TokenRequest": Kind(
        kind="TokenRequest",
        plural="tokenrequests",
        singular="tokenrequest",
        group="authentication.k8s.io",
        definition="io.k8s.api.authentication.v1.TokenRequest",
        default=_default_token_request,
    ),
}
_SUCCESS: Object = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}


def own_endpoints(core: Core) -> dict[tuple[str, str], Endpoint]:
    """The endpoints that the server has by itself."""
    return {("pods", "binding"): Binding(core), ("pods", "eviction"): Eviction(core)}


async def call(
    core: Core, user: User, target: Target, body: Body, options: WriteOptions, query: Mapping[str, str]
) -> Written:
    """Decode the body, have it admitted and hand it to the registered endpoint."""
    kind = target.kind
    if target.subresource:
        subresource = kind.subresource(target.subresource)
        kind = _BODIES.get(subresource.kind, kind) if subresource else kind
    obj, warnings = decode(kind, body, options.field_validation)
    if target.namespace and meta(obj).setdefault("namespace", target.namespace) != target.namespace:
        raise errors.bad_request(
            "the namespace of the provided object does not match the namespace sent on the request"
        )
    kind.default(obj)
    request = Admission(
        "CREATE",
        target.kind,
        target.name,
        target.namespace,
        target.subresource,
        obj,
        None,
        options.as_object("CreateOptions"),
        user,
        options.dry_run,
        warnings,
    )
    await core.mutate(request)
    obj, _ = decode(kind, Body(request.object), "Ignore")  # the endpoints rely on the types
    kind.default(obj)
    if problems := kind.validate(obj):
        raise errors.invalid(kind.kind, kind.group, meta(obj).get("name") or "", problems)
    request.object = obj
    await core.admit(request)
    endpoint = core.endpoints[target.kind.resource, target.subresource]
    answer = await endpoint(
        Call(
            user,
            target.kind,
            target.name,
            target.namespace,
            target.subresource,
            "create",
            obj,
            query,
            options.dry_run,
        )
    )
    answer.setdefault("kind", kind.kind)
    answer.setdefault("apiVersion", kind.api_version)
    return Written(answer, True, tuple(request.warnings))


# Scale (autoscaling/v1)


def get_scale(core: Core, target: Target) -> Object:
    stored = core.stored(target)
    if stored is None:
        raise target.not_found()
    return _scale_of(target, target.kind.from_stored(stored))


def _scale_of(target: Target, obj: Object) -> Object:
    paths = _paths(target)
    metadata = meta(obj)
    keys = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
    replicas = dig(obj, *paths.spec.split("."), default=0)
    status: Object = {"replicas": dig(obj, *paths.status.split("."), default=0)}
    selector = dig(obj, *paths.selector.split(".")) if paths.selector else None
    if isinstance(selector, dict):
        selector = str(LabelSelector.from_object(selector))
    if selector:
        status["selector"] = selector
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {key: metadata[key] for key in keys if key in metadata},
        "spec": {"replicas": replicas} if replicas else {},
        "status": status,
    }


async def update_scale(core: Core, user: User, target: Target, body: Body, options: WriteOptions) -> Written:
    """Replace a scale: only spec.replicas counts."""
    wanted, warnings = decode(SCALE, body, options.field_validation)
    return await edit_scale(core, user, target, lambda _scale: (wanted, list(warnings)), options)


async def edit_scale(core: Core, user: User, target: Target, change: Edit, options: WriteOptions) -> Written:
    """Apply a change of the Scale to the object that is scaled."""
    paths = _paths(target)

    def scaled(old: Object) -> tuple[Object, list[str]]:
        wanted, warnings = change(_scale_of(target, old))
        replicas = dig(wanted, "spec", "replicas", default=0)
        if replicas < 0:
            problem = errors.invalid_value("spec.replicas", replicas, "must be greater than or equal to 0")
            raise errors.invalid(SCALE.kind, SCALE.group, target.name, [problem])
        new: Object = copy(old)
        _put(new, paths.spec.split("."), replicas)
        new["metadata"]["resourceVersion"] = meta(wanted).get("resourceVersion", "")
        return new, warnings

    written = await edit(core, user, target, scaled, options.as_object("UpdateOptions"), options)
    return Written(_scale_of(target, written.object), False, written.warnings)


def _paths(target: Target) -> ScalePaths:
    if target.kind.scale is None:
        raise target.not_found()
    return target.kind.scale


def _put(obj: Object, path: list[str], value: object) -> None:
    for step in path[:-1]:
        obj = obj.setdefault(step, {})
    obj[path[-1]] = value


# Pods


class Binding:
    """`pods/binding`: the scheduler's decision."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def __call__(self, call: Call) -> Object:
        body = call.body or {}
        node = dig(body, "target", "name", default="")
        if not node:
            raise errors.invalid("Binding", "", call.name, [errors.required("target.name")])
        if dig(body, "target", "kind", default="Node") != "Node":
            problem = errors.not_supported("target.kind", body["target"]["kind"], ("Node",))
            raise errors.invalid("Binding", "", call.name, [problem])

        def bound(pod: Object) -> Object:
            if meta(body).get("uid") not in (None, "", pod["metadata"]["uid"]):
                raise _refused(call, "the pod was deleted and created again")
            if is_deleting(pod):
                raise _refused(call, f"pod {call.name} is being deleted, cannot be assigned to a host")
            if present := dig(pod, "spec", "nodeName"):
                raise _refused(call, f'pod {call.name} is already assigned to node "{present}"')
            pod["spec"]["nodeName"] = node
            _schedule(pod, rfc3339(self._core.now()))
            return pod

        target = Target(call.kind, call.namespace, call.name)
        overwrite(self._core, target, bound, dry_run=call.dry_run)
        return {**_SUCCESS}


def _schedule(pod: Object, now: str) -> None:
    """Set the PodScheduled condition."""
    conditions = pod.setdefault("status", {}).setdefault("conditions", [])
    if (old := condition(pod, "PodScheduled")) is not None:
        conditions.remove(old)
    conditions.append(
        {"type": "PodScheduled", "status": "True", "lastProbeTime": None, "lastTransitionTime": now}
    )


def _refused(call: Call, detail: str) -> ApiError:
    return errors.conflict("pods/binding", "", call.name, detail)


class Eviction:
    """`pods/eviction`: a delete; there are no PodDisruptionBudgets to ask."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def __call__(self, call: Call) -> Object:
        options = read_options((call.body or {}).get("deleteOptions") or {}, dry_run=call.dry_run)
        await delete(self._core, call.user, Target(call.kind, call.namespace, call.name), options)
        return {**_SUCCESS}

"""Create, update and patch: the order of steps is that of apiserver's handlers and generic registry."""

from collections.abc import Callable

from mesh_local.apiserver import objectmeta
from mesh_local.apiserver.core import Core, Target, WriteOptions, Written
from mesh_local.apiserver.decode import Body, decode
from mesh_local.apiserver.store import Exists, Stale
from mesh_local.apiserver.types import Admission, User
from mesh_local.kinds.base import Kind
from mesh_local.machinery import errors
from mesh_local.machinery.errors import FieldError, invalid_value
from mesh_local.machinery.metadata import validate_metadata, validate_metadata_update
from mesh_local.machinery.objects import Object, copy, dig, is_deleting, meta

NAME_ATTEMPTS = 8
WRITE_ATTEMPTS = 5

# From the current object to the wanted one and the warnings of decoding it; a pure function.
Edit = Callable[[Object], tuple[Object, list[str]]]


async def create(core: Core, user: User, target: Target, body: Body, options: WriteOptions) -> Written:
    """Create an object; `target.name` is empty, or what the path of a PUT said."""
    kind = target.kind
    obj, warnings = decode(kind, body, options.field_validation)
    objectmeta.check_identity(obj, target)
    objectmeta.begin_create(obj)
    kind.default(obj)
    name = meta(obj).get("name") or ""
    request = Admission(
        "CREATE",
        kind,
        name,
        target.namespace,
        "",
        obj,
        None,
        options.as_object("CreateOptions"),
        user,
        options.dry_run,
        warnings,
    )
    await core.mutate(request)
    obj = _result(request)
    objectmeta.check_identity(obj, target)
    kind.default(obj)
    _name(core, target, obj)
    objectmeta.finish_create(kind, obj, core.now(), core.rng)
    kind.prepare_create(obj)
    _refuse(kind, obj, _check_new(kind, obj))
    request.object, request.name = obj, obj["metadata"]["name"]
    await core.admit(request)
    warnings = [*request.warnings, *kind.warnings(obj)]
    if options.dry_run:
        if core.store.get(kind.stored_as, obj["metadata"]["name"], target.namespace) is not None:
            raise errors.already_exists(kind.plural, kind.group, obj["metadata"]["name"])
        return Written(obj, True, tuple(warnings))
    if core.registry.by_path(kind.group, kind.version, kind.plural) is None:
        raise errors.failure(404, "NotFound", "the definition of the resource was deleted meanwhile", {})
    try:
        stored = core.store.create(kind.stored_as, kind.to_stored(obj))
    except Exists:
        raise errors.already_exists(kind.plural, kind.group, obj["metadata"]["name"]) from None
    return Written(kind.from_stored(stored), True, tuple(warnings))


def _name(core: Core, target: Target, obj: Object) -> None:
    """Choose a name for generateName; a collision is tried again."""
    metadata = obj["metadata"]
    if metadata.get("name") or not metadata.get("generateName"):
        return
    for _ in range(NAME_ATTEMPTS):
        metadata["name"] = objectmeta.generated_name(metadata["generateName"], core.rng)
        if core.store.get(target.kind.stored_as, metadata["name"], target.namespace) is None:
            return


async def update(core: Core, user: User, target: Target, body: Body, options: WriteOptions) -> Written:
    """Replace an object, or its status."""
    obj, warnings = decode(target.kind, body, options.field_validation)
    objectmeta.check_identity(obj, target)
    stored = core.stored(target)
    if stored is None:
        if target.kind.create_on_update and not target.subresource:
            core.authorize(user, "create", target)
            return await create(core, user, target, body, options)
        raise target.not_found()
    _check_uid(target, obj, stored)
    return await edit(
        core,
        user,
        target,
        lambda _old: (copy(obj), list(warnings)),
        options.as_object("UpdateOptions"),
        options,
    )


async def edit(
    core: Core, user: User, target: Target, change: Edit, admission_options: Object, options: WriteOptions
) -> Written:
    """Apply `change` to the stored object; where another write came between, again to the newer one.

    Raises:
        ApiError: 404; 409 where the wanted object carries another resourceVersion than the stored one.
    """
    kind = target.kind
    for _ in range(WRITE_ATTEMPTS):
        stored = core.stored(target)
        if stored is None:
            raise target.not_found()
        old = kind.from_stored(stored)
        new, warnings = change(old)
        objectmeta.check_identity(new, target)
        request = Admission(
            "UPDATE",
            kind,
            target.name,
            target.namespace,
            target.subresource,
            new,
            old,
            admission_options,
            user,
            options.dry_run,
            warnings,
        )
        new = await _prepared(core, target, request, old)
        warnings = [*request.warnings, *kind.warnings(new)]
        if objectmeta.same(new, old):
            return Written(old, False, tuple(warnings))
        if options.dry_run:
            return Written(new, False, tuple(warnings))
        try:
            return Written(_replace(core, kind, new, stored), False, tuple(warnings))
        except Stale:
            continue
    raise target.stale()


async def _prepared(core: Core, target: Target, request: Admission, old: Object) -> Object:
    """Run an update through admission, preparation and validation."""
    kind, new = target.kind, _result(request)
    kind.default(new)
    objectmeta.begin_update(new, old)
    await core.mutate(request)
    new = _result(request)
    kind.default(new)
    _check_version(target, new, old)
    objectmeta.carry_over(new, old)
    if target.subresource == "status":
        kind.prepare_status(new, old)
    elif target.subresource == "finalize":
        new = _finalized(new, old)
    else:
        kind.prepare_update(new, old)
    objectmeta.finish_update(kind, new, old)
    _refuse(
        kind,
        new,
        [*validate_metadata_update(meta(new), meta(old)), *kind.validate_update(new, old)],
    )
    request.object = new
    await core.admit(request)
    return new


def _finalized(new: Object, old: Object) -> Object:
    """`namespaces/finalize`: only spec.finalizers counts."""
    finalizers = dig(new, "spec", "finalizers", default=[])
    result: Object = copy(old)
    result["spec"] = {**result["spec"], "finalizers": finalizers} if finalizers else {}
    return result


def overwrite(core: Core, target: Target, change: Callable[[Object], Object], *, dry_run: bool) -> Object:
    """Let the server itself change an object, past preparation and admission.

    Raises:
        ApiError: 404.
    """
    kind, stored = target.kind, core.stored(target)
    if stored is None:
        raise target.not_found()
    old = kind.from_stored(stored)
    new = change(copy(old))
    if dry_run or objectmeta.same(new, old):
        return new
    return kind.from_stored(core.store.update(kind.stored_as, kind.to_stored(new), stored))


def _replace(core: Core, kind: Kind, new: Object, stored: Object) -> Object:
    """Store `new`, or delete the object where its last finalizer went."""
    if is_finished(kind, new):
        core.store.delete(kind.stored_as, stored)
        return new
    return kind.from_stored(core.store.update(kind.stored_as, kind.to_stored(new), stored))


def is_finished(kind: Kind, obj: Object) -> bool:
    """Whether nothing holds a deleted object any longer: no finalizer, no grace."""
    if not is_deleting(obj) or meta(obj).get("finalizers") or meta(obj).get("deletionGracePeriodSeconds"):
        return False
    return not (kind.resource == "namespaces" and dig(obj, "spec", "finalizers"))


def _check_new(kind: Kind, obj: Object) -> list[FieldError]:
    found = validate_metadata(meta(obj), namespaced=kind.namespaced, name_rule=kind.name_rule)
    return [*found, *kind.validate(obj)]


def _check_version(target: Target, new: Object, old: Object) -> None:
    """Optimistic locking: no resourceVersion means unconditional, where the kind allows it."""
    kind, metadata = target.kind, new["metadata"]
    current = old["metadata"]["resourceVersion"]
    version = metadata.get("resourceVersion") or ""
    if version in ("", "0"):
        if not kind.unconditional_update:
            problem = invalid_value("metadata.resourceVersion", 0, "must be specified for an update")
            raise errors.invalid(kind.plural, kind.group, target.name, [problem])
        metadata["resourceVersion"] = current
    elif version != current:
        raise target.stale()


def _check_uid(target: Target, new: Object, old: Object) -> None:
    wanted, actual = meta(new).get("uid"), old["metadata"]["uid"]
    if wanted and wanted != actual:
        kind = target.kind
        path = "/".join(p for p in (kind.group, kind.plural, target.namespace, target.name) if p)
        raise errors.conflict(
            kind.plural,
            kind.group,
            target.name,
            f"StorageError: invalid object, Code: 4, Key: /registry/{path}, ResourceVersion: 0, "
            f"AdditionalErrorMsg: Precondition failed: UID in precondition: {wanted}, "
            f"UID in object meta: {actual}",
        )


def _refuse(kind: Kind, obj: Object, problems: list[FieldError]) -> None:
    if problems:
        group = kind.stored_as.partition(".")[2]  # an Event of events.k8s.io is refused as one of the core
        raise errors.invalid(kind.kind, group, meta(obj).get("name") or "", problems)


def _result(request: Admission) -> Object:
    if request.object is None:
        raise errors.internal("admission removed the object")
    return request.object

"""Delete and deletecollection (apiserver's `rest.BeforeDelete` and generic registry `Store.Delete`)."""

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from mesh_local.apiserver.core import Core, Target
from mesh_local.apiserver.listing import ListOptions, Page, list_objects
from mesh_local.apiserver.store import Stale
from mesh_local.apiserver.types import Admission, User
from mesh_local.apiserver.write import WRITE_ATTEMPTS, is_finished
from mesh_local.kinds.base import Kind
from mesh_local.kinds.crd import terminating_status
from mesh_local.machinery import errors, schema
from mesh_local.machinery.errors import ApiError
from mesh_local.machinery.objects import Object, copy, dig, is_deleting, meta, name_of, namespace_of, rfc3339

FOREGROUND = "foregroundDeletion"
ORPHAN = "orphan"
DELETE_OPTIONS = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions"
POLICIES = ("Foreground", "Background", "Orphan")
CRDS = "customresourcedefinitions.apiextensions.k8s.io"
CRD_CLEANUP = "customresourcecleanup.apiextensions.k8s.io"
# A grace may be any int64; the time of its end has to be one that can be written.
GRACE_SHOWN_S = 100 * 365 * 24 * 3600


@dataclass(frozen=True, slots=True)
class DeleteOptions:
    """meta/v1 DeleteOptions; None and '' are what the client left out."""

    grace_s: int | None = None
    propagation: str = ""
    orphan: bool | None = None
    uid: str = ""
    resource_version: str = ""
    dry_run: bool = False

    def as_object(self) -> Object:
        """The form in which admission sees them."""
        options: Object = {"kind": "DeleteOptions", "apiVersion": "meta.k8s.io/v1"}
        if self.grace_s is not None:
            options["gracePeriodSeconds"] = self.grace_s
        preconditions = {"uid": self.uid, "resourceVersion": self.resource_version}
        if any(preconditions.values()):
            options["preconditions"] = {k: v for k, v in preconditions.items() if v}
        if self.orphan is not None:
            options["orphanDependents"] = self.orphan
        if self.propagation:
            options["propagationPolicy"] = self.propagation
        if self.dry_run:
            options["dryRun"] = ["All"]
        return options


def read_options(data: Any, *, dry_run: bool = False) -> DeleteOptions:
    """The options of a request body. Raises ApiError 400."""
    decoded = schema.decode(DELETE_OPTIONS, data, kind="DeleteOptions", version="v1").object
    preconditions = decoded.get("preconditions") or {}
    return DeleteOptions(
        grace_s=decoded.get("gracePeriodSeconds"),
        propagation=decoded.get("propagationPolicy") or "",
        orphan=decoded.get("orphanDependents"),
        uid=preconditions.get("uid") or "",
        resource_version=preconditions.get("resourceVersion") or "",
        dry_run=dry_run or bool(decoded.get("dryRun")),
    )


@dataclass(frozen=True, slots=True)
class Deleted:
    """The object in its last or marked state, and whether something still holds it."""

    object: Object
    kept: bool
    warnings: tuple[str, ...] = ()


async def delete(core: Core, user: User, target: Target, options: DeleteOptions) -> Deleted:
    """Delete an object, or mark it where grace or finalizers hold it.

    Raises:
        ApiError: 404; 409 where a precondition does not hold.
    """
    kind = target.kind
    _check_options(options)
    for _ in range(WRITE_ATTEMPTS):
        stored = core.stored(target)
        if stored is None:
            raise target.not_found()
        old = kind.from_stored(stored)
        request = Admission(
            "DELETE",
            kind,
            target.name,
            target.namespace,
            "",
            None,
            old,
            options.as_object(),
            user,
            options.dry_run,
        )
        await core.mutate(request)
        _check_preconditions(target, options, old)
        await core.admit(request)
        marked = _marked(core, kind, old, options)
        kept = _held(kind, marked)
        if options.dry_run:
            return Deleted(marked, kept, tuple(request.warnings))
        try:
            marked = _store(core, kind, marked, old, stored, kept)
        except Stale:
            continue
        return Deleted(marked, kept, tuple(request.warnings))
    raise target.stale()


async def delete_collection(
    core: Core, user: User, target: Target, selected: ListOptions, options: DeleteOptions
) -> Page:
    """Delete every object that `selected` lists; the answer is that list."""
    page = list_objects(core, target, selected)
    for obj in page.items:
        one = replace(target, namespace=namespace_of(obj), name=name_of(obj))
        try:
            await delete(core, user, one, options)
        except ApiError as error:
            if error.code != 404:
                raise
    return page


def _store(core: Core, kind: Kind, marked: Object, old: Object, stored: Object, kept: bool) -> Object:
    """Write the mark, then remove the object unless it is kept."""
    if marked != old:
        stored = core.store.update(kind.stored_as, kind.to_stored(marked), stored)
        marked = kind.from_stored(stored)
    if not kept:
        core.store.delete(kind.stored_as, stored)
    return marked


def _held(kind: Kind, obj: Object) -> bool:
    """Whether the object stays for now; unmarked objects go at once."""
    return is_deleting(obj) and not is_finished(kind, obj)


def _marked(core: Core, kind: Kind, old: Object, options: DeleteOptions) -> Object:
    """The object as the deletion leaves it; `old` itself where nothing changes."""
    if kind.graceful:
        return _mark_graceful(core, kind, old, options)
    finalizers = _finalizers(kind, old, options)
    if kind.resource == "namespaces":
        if is_deleting(old):
            return old
        new = _mark_only(core, old, finalizers)
        new["status"] = {**(new.get("status") or {}), "phase": "Terminating"}
        return new
    if not finalizers:
        return old
    if is_deleting(old) and finalizers == (meta(old).get("finalizers") or []):
        return old
    if kind.resource == CRDS:
        new = _mark_only(core, old, finalizers)
        new["status"] = terminating_status(new, core.now(), started=False)
        return new
    return _mark(core, old, finalizers)


def _mark_only(core: Core, old: Object, finalizers: list[str]) -> Object:
    """Namespaces and definitions have a way of their own: neither grace nor generation."""
    new: Object = copy(old)
    metadata = new["metadata"]
    metadata.setdefault("deletionTimestamp", rfc3339(core.now()))
    metadata.pop("finalizers", None)
    if finalizers:
        metadata["finalizers"] = finalizers
    return new


def _mark(core: Core, old: Object, finalizers: list[str]) -> Object:
    """Set deletionTimestamp without grace; the first time raises the generation."""
    new: Object = copy(old)
    metadata = new["metadata"]
    if not is_deleting(old):
        metadata["deletionTimestamp"] = rfc3339(core.now())
        if metadata.get("generation"):
            metadata["generation"] += 1
    metadata["deletionGracePeriodSeconds"] = 0
    metadata.pop("finalizers", None)
    if finalizers:
        metadata["finalizers"] = finalizers
    return new


def _mark_graceful(core: Core, kind: Kind, old: Object, options: DeleteOptions) -> Object:
    """Pods: the grace of the request or of the spec; a later request can only shorten it."""
    grace = options.grace_s
    before = meta(old).get("deletionGracePeriodSeconds")
    if is_deleting(old):
        if not before or grace is None or grace >= before:
            return old
    elif grace is None:
        grace = int(dig(old, "spec", "terminationGracePeriodSeconds", default=30))
    if not dig(old, "spec", "nodeName") or dig(old, "status", "phase") in ("Failed", "Succeeded"):
        grace = 0
    if grace < 0:
        grace = 1
    new: Object = copy(old)
    metadata = new["metadata"]
    if not is_deleting(old) and metadata.get("generation"):
        metadata["generation"] += 1
    metadata["deletionTimestamp"] = rfc3339(core.now() + timedelta(seconds=min(grace, GRACE_SHOWN_S)))
    metadata["deletionGracePeriodSeconds"] = grace
    finalizers = _finalizers(kind, old, options)
    metadata.pop("finalizers", None)
    if finalizers:
        metadata["finalizers"] = finalizers
    return new


def _finalizers(kind: Kind, old: Object, options: DeleteOptions) -> list[str]:
    """The finalizers that the propagation policy leaves on the object."""
    present: list[str] = meta(old).get("finalizers") or []
    policy = options.propagation
    if not policy and options.orphan is not None:
        policy = "Orphan" if options.orphan else "Background"
    wanted = {"Orphan": ORPHAN, "Foreground": FOREGROUND, "Background": ""}.get(policy)
    if wanted is None:
        finalizers = list(present)
    else:
        finalizers = [f for f in present if f not in (ORPHAN, FOREGROUND)]
        if wanted:
            finalizers = list(present) if wanted in present else [*finalizers, wanted]
    if kind.resource == CRDS and not is_deleting(old):
        finalizers = [*(f for f in finalizers if f != CRD_CLEANUP), CRD_CLEANUP]
    return finalizers


def _check_preconditions(target: Target, options: DeleteOptions, old: Object) -> None:
    """The uid and resourceVersion that the caller requires; these conflicts name the kind."""
    kind, metadata = target.kind, old["metadata"]
    if options.uid and options.uid != metadata["uid"]:
        raise errors.conflict(
            kind.kind,
            kind.group,
            target.name,
            f"the UID in the precondition ({options.uid}) does not match the UID in record "
            f"({metadata['uid']}). The object might have been deleted and then recreated",
        )
    if options.resource_version and options.resource_version != metadata["resourceVersion"]:
        raise errors.conflict(
            kind.kind,
            kind.group,
            target.name,
            f"the ResourceVersion in the precondition ({options.resource_version}) does not match the "
            f"ResourceVersion in record ({metadata['resourceVersion']}). "
            "The object might have been modified",
        )


def _check_options(options: DeleteOptions) -> None:
    """apimachinery's ValidateDeleteOptions."""
    problems = []
    if options.orphan is not None and options.propagation:
        problems.append(
            errors.invalid_value(
                "propagationPolicy",
                options.propagation,
                "orphanDependents and deletionPropagation cannot be both set",
            )
        )
    if options.propagation not in ("", *POLICIES):
        problems.append(errors.not_supported("propagationPolicy", options.propagation, (*POLICIES, "nil")))
    if problems:
        raise errors.invalid("DeleteOptions", "meta.k8s.io", "", problems)


def answer(target: Target, deleted: Deleted) -> Object:
    """What the request answers: the object, or a Status that names it."""
    kind = target.kind
    if deleted.kept or kind.delete_returns_object:
        return deleted.object
    details: Object = {"name": deleted.object["metadata"]["name"]}
    if kind.group:
        details["group"] = kind.group
    details |= {"kind": kind.plural, "uid": deleted.object["metadata"]["uid"]}
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}

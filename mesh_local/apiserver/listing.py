"""Get and list: consistent pages, resourceVersion rules, selectors."""

import base64
import binascii
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from mesh_local.apiserver.core import Core, Target, version_number
from mesh_local.apiserver.store import TooOld, key_of
from mesh_local.kinds.base import Kind
from mesh_local.machinery import errors, jsontext
from mesh_local.machinery.errors import ApiError
from mesh_local.machinery.objects import Object, labels_of, name_of, namespace_of
from mesh_local.machinery.selectors import FieldSelector, LabelSelector

Match = Callable[[Object], bool]

TOO_OLD_LIST = "The resourceVersion for the provided list is too old."
TOO_OLD_CONTINUE = (
    "The provided continue parameter is too old to display a consistent list result. You can start a new "
    "list without the continue parameter, or use the continue token in this response to retrieve the "
    "remainder of the results. Continuing with the provided token results in an inconsistent list - objects "
    "that were created, modified, or deleted between the time the first chunk was returned and now may show "
    "up in the list."
)


@dataclass(frozen=True, slots=True)
class ListOptions:
    """The query parameters of list and watch."""

    labels: str = ""
    fields: str = ""
    limit: int = 0
    continue_: str = ""
    resource_version: str = ""
    resource_version_match: str = ""
    allow_bookmarks: bool = False
    send_initial_events: bool | None = None
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """Objects (with kind and apiVersion) and the metadata of their list."""

    items: Sequence[Object]
    metadata: Object


def read(core: Core, target: Target, resource_version: str = "") -> Object:
    """The newest state of one object.

    Raises:
        ApiError: 404; 504 for a version from the future.
    """
    if resource_version:
        _not_future(core, parse_version(resource_version))
    stored = core.stored(target)
    if stored is None:
        raise target.not_found()
    return target.kind.from_stored(stored)


def list_objects(core: Core, target: Target, options: ListOptions) -> Page:
    """The objects of a kind, in one namespace or all."""
    kind = target.kind
    check_options(options)
    match = matcher(kind, options)
    if options.continue_:
        if options.resource_version not in ("", "0"):
            raise errors.bad_request("specifying resource version is not allowed when using continue")
        version, start = _decode_continue(options.continue_, target.namespace)
        _not_future(core, version)
        objects = _continued(core, kind, target.namespace, version, start)
        version = version if version > 0 else core.store.version
        return _page(kind, objects, version, match, options, start, target.namespace)
    version = core.store.version
    limit = options.limit
    if options.resource_version:
        wanted = parse_version(options.resource_version)
        _not_future(core, wanted)
        exact = options.resource_version_match == "Exact" or (
            limit and wanted and not options.resource_version_match
        )
        if exact:
            version = wanted
        elif not wanted:
            options = ListOptions(labels=options.labels, fields=options.fields)
    try:
        objects = core.store.list_at(kind.stored_as, target.namespace, version)
    except TooOld:
        raise errors.expired(TOO_OLD_LIST) from None
    return _page(kind, objects, version, match, options, "", target.namespace)


def _page(
    kind: Kind,
    objects: Sequence[Object],
    version: int,
    match: Match | None,
    options: ListOptions,
    start: str,
    namespace: str,
) -> Page:
    """Select, cut to the limit and say how to go on."""
    if start:
        objects = [o for o in objects if key_of(o) >= start]
    chosen = [kind.from_stored(o) for o in objects]
    if match is not None:
        chosen = [o for o in chosen if match(o)]
    metadata: Object = {"resourceVersion": str(version)}
    if options.limit and len(chosen) > options.limit:
        rest = len(chosen) - options.limit
        chosen = chosen[: options.limit]
        metadata["continue"] = _encode_continue(version, key_of(chosen[-1]), namespace)
        if match is None:
            metadata["remainingItemCount"] = rest
    return Page(chosen, metadata)


def _continued(core: Core, kind: Kind, namespace: str, version: int, start: str) -> Sequence[Object]:
    """The state that a continue token names; -1 is whatever is there now."""
    if version < 0:
        return core.store.list(kind.stored_as, namespace)
    try:
        return core.store.list_at(kind.stored_as, namespace, version)
    except TooOld:
        error = errors.expired(TOO_OLD_CONTINUE)
        token = _token(-1, start.removeprefix(f"{namespace}/") if namespace else start)
        error.status["metadata"] = {"continue": token}
        raise error from None


def _encode_continue(version: int, last: str, namespace: str) -> str:
    return _token(version, (last.removeprefix(f"{namespace}/") if namespace else last) + "\0")


def _token(version: int, start: str) -> str:
    """apiserver's continue token: the version and the first key of the next page."""
    raw = msgspec.json.encode({"v": "meta.k8s.io/v1", "rv": version, "start": start})
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _decode_continue(token: str, namespace: str) -> tuple[int, str]:
    """The version and the start key of a continue token. Raises ApiError 400."""
    try:
        raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
        # Go reports single bytes.
        found, _ = jsontext.parse_json(raw.decode("latin-1").encode())
        version, start = found["rv"], found["start"]
        if found["v"] != "meta.k8s.io/v1" or type(version) is not int or version == 0:
            raise ValueError("unknown form")
        if not isinstance(start, str) or not start:
            raise ValueError("no start key")
    except (
        binascii.Error,
        msgspec.DecodeError,
        UnicodeDecodeError,
        KeyError,
        TypeError,
        ValueError,
    ) as error:
        raise errors.bad_request(f"invalid continue token: continue key is not valid: {error}") from None
    return version, f"{namespace}/{start}" if namespace else start


def parse_version(text: str) -> int:
    """A resourceVersion parameter of get or list. Raises ApiError 400."""
    try:
        return version_number(text)
    except ValueError as error:
        raise errors.bad_request(f"invalid resource version: {error}") from None


def _not_future(core: Core, version: int) -> None:
    if version > core.store.version:
        raise too_large(version, core.store.version)


def too_large(version: int, current: int) -> ApiError:
    """A version that was never issued; the client should try again in a second."""
    error = errors.failure(
        504,
        "Timeout",
        f"Timeout: Too large resource version: {version}, current: {current}",
        {
            "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
            "retryAfterSeconds": 1,
        },
    )
    return ApiError(error.status, [("Retry-After", "1")])


def check_options(options: ListOptions) -> None:
    """apimachinery's ValidateListOptions for a list."""
    match, version = options.resource_version_match, options.resource_version
    field = "resourceVersionMatch"
    problems = []
    if match:
        if not version:
            problems.append(
                errors.forbidden_field(field, f"{field} is forbidden unless resourceVersion is provided")
            )
        if options.continue_:
            problems.append(errors.forbidden_field(field, f"{field} is forbidden when continue is provided"))
        if match not in ("Exact", "NotOlderThan"):
            problems.append(errors.not_supported(field, match, ("Exact", "NotOlderThan", "")))
        if match == "Exact" and version == "0":
            problems.append(
                errors.forbidden_field(field, f'{field} "exact" is forbidden for resourceVersion "0"')
            )
    if options.send_initial_events is not None:
        problems.append(
            errors.forbidden_field("sendInitialEvents", "sendInitialEvents is forbidden for list")
        )
    if problems:
        raise errors.invalid("ListOptions", "meta.k8s.io", "", problems)


def matcher(kind: Kind, options: ListOptions) -> Match | None:
    """The selectors as one predicate; None matches everything. Raises ApiError 400."""
    by_label = LabelSelector.parse(options.labels)
    by_field = FieldSelector.parse(options.fields)
    by_field.check(kind.fields, custom=not kind.definition)
    if by_label.empty and by_field.empty:
        return None

    def match(obj: Object) -> bool:
        if not by_label.matches(labels_of(obj)):
            return False
        return by_field.empty or by_field.matches(lambda field: _field(kind, obj, field))

    return match


def _field(kind: Kind, obj: Object, field: str) -> str:
    """The value that a field selector compares."""
    if field == "metadata.name":
        return name_of(obj)
    if field == "metadata.namespace":
        return namespace_of(obj)
    return kind.fields[field](obj)

"""From a query string to the options of the verbs, with apimachinery's refusals."""

from collections.abc import Mapping

from mesh_local.apiserver.core import WriteOptions, query_flag, query_integer
from mesh_local.apiserver.delete import DeleteOptions
from mesh_local.apiserver.listing import ListOptions
from mesh_local.machinery import errors
from mesh_local.machinery.errors import FieldError

_VALIDATIONS = ("", "Ignore", "Strict", "Warn")
_MAX_WATCH_S = 24 * 3600
GROUP = "meta.k8s.io"


def write_options(query: Mapping[str, str], kind: str) -> WriteOptions:
    """CreateOptions, UpdateOptions or PatchOptions (`kind`, for messages). Raises ApiError 422."""
    problems = _dry_run(query)
    validation = query.get("fieldValidation", "")
    if validation not in _VALIDATIONS:
        problems.append(errors.not_supported("fieldValidation", validation, _VALIDATIONS))
    if problems:
        raise errors.invalid(kind, GROUP, "", problems)
    return WriteOptions(bool(query.get("dryRun")), query.get("fieldManager", ""), validation or "Warn")


def delete_options(query: Mapping[str, str]) -> DeleteOptions:
    """DeleteOptions without a body. Raises ApiError 400 or 422."""
    if problems := _dry_run(query):
        raise errors.invalid("DeleteOptions", GROUP, "", problems)
    orphan = query_flag(query, "orphanDependents") if "orphanDependents" in query else None
    return DeleteOptions(
        grace_s=query_integer(query, "gracePeriodSeconds"),
        propagation=query.get("propagationPolicy", ""),
        orphan=orphan,
        dry_run=bool(query.get("dryRun")),
    )


def list_options(query: Mapping[str, str]) -> ListOptions:
    """ListOptions. Raises ApiError 400."""
    timeout = query_integer(query, "timeoutSeconds")
    initial = query_flag(query, "sendInitialEvents") if query.get("sendInitialEvents") else None
    return ListOptions(
        labels=query.get("labelSelector", ""),
        fields=query.get("fieldSelector", ""),
        limit=max(query_integer(query, "limit") or 0, 0),
        continue_=query.get("continue", ""),
        resource_version=query.get("resourceVersion", ""),
        resource_version_match=query.get("resourceVersionMatch", ""),
        allow_bookmarks=query_flag(query, "allowWatchBookmarks"),
        send_initial_events=initial,
        timeout_s=float(min(timeout, _MAX_WATCH_S)) if timeout and timeout > 0 else None,
    )


def _dry_run(query: Mapping[str, str]) -> list[FieldError]:
    value = query.get("dryRun", "")
    return [] if value in ("", "All") else [errors.not_supported("dryRun", [value], ("All",))]

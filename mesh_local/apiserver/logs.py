"""`pods/log`: options, and which container is meant (core/v1 PodLogOptions, LogLocation of the registry)."""

from collections.abc import Mapping
from dataclasses import replace

from mesh_local.apiserver.core import Core, Target, query_flag, query_integer
from mesh_local.apiserver.types import LogOptions
from mesh_local.machinery import errors
from mesh_local.machinery.errors import FieldError
from mesh_local.machinery.objects import Object, dig, parse_time

# Longer ago than any line; the moment has to be one that can be written.
OLDEST_S = 100 * 365 * 24 * 3600
_CONTAINERS = ("initContainers", "containers", "ephemeralContainers")


def read_log_options(query: Mapping[str, str], pod_name: str) -> LogOptions:
    """The options of a query string.

    Raises:
        ApiError: 400 for a value of the wrong type, 422 for one out of range.
    """
    options = LogOptions(
        container=query.get("container", ""),
        follow=query_flag(query, "follow"),
        previous=query_flag(query, "previous"),
        timestamps=query_flag(query, "timestamps"),
        since_seconds=_at_most(query_integer(query, "sinceSeconds"), OLDEST_S),
        since_time=query.get("sinceTime", ""),
        tail_lines=query_integer(query, "tailLines"),
        limit_bytes=query_integer(query, "limitBytes"),
    )
    if options.since_time:
        try:
            parse_time(options.since_time)
        except ValueError:
            raise errors.bad_request(
                f'parsing time "{options.since_time}" as "2006-01-02T15:04:05Z07:00": cannot parse'
            ) from None
    if problems := _problems(options, query):
        raise errors.invalid("PodLogOptions", "", pod_name, problems)
    return options


def _at_most(value: int | None, limit: int) -> int | None:
    return None if value is None else min(value, limit)


def _problems(options: LogOptions, query: Mapping[str, str]) -> list[FieldError]:
    problems = []
    if query.get("stream", ""):
        problems.append(errors.forbidden_field("stream", "may not be specified"))
    least_values: tuple[tuple[str, int | None, int], ...] = (
        ("tailLines", options.tail_lines, 0),
        ("limitBytes", options.limit_bytes, 1),
        ("sinceSeconds", options.since_seconds, 1),
    )
    for field, value, least in least_values:
        if value is not None and value < least:
            detail = f"must be greater than {'or equal to ' if not least else ''}0"
            problems.append(errors.invalid_value(field, value, detail))
    if options.since_seconds is not None and options.since_time:
        problems.append(
            errors.forbidden_field("", "at most one of `sinceTime` or `sinceSeconds` may be specified")
        )
    return problems


def locate(core: Core, target: Target, options: LogOptions) -> tuple[Object, LogOptions] | None:
    """The pod and the options with a container; None for a pod that no node has yet.

    Raises:
        ApiError: 404, or 400 where the container is not clear.
    """
    pod = core.stored(target)
    if pod is None:
        raise target.not_found()
    names = [c["name"] for key in _CONTAINERS for c in dig(pod, "spec", key, default=[])]
    container = options.container
    if not container:
        container = _default_container(pod, target.name)
    elif container not in names:
        raise errors.bad_request(f"container {container} is not valid for pod {target.name}")
    if not dig(pod, "spec", "nodeName"):
        return None
    return pod, replace(options, container=container)


def _default_container(pod: Object, name: str) -> str:
    """The only container; where there are more, the caller must say."""
    mains = [c["name"] for c in dig(pod, "spec", "containers", default=[])]
    inits = [c["name"] for c in dig(pod, "spec", "initContainers", default=[])]
    if len(mains) == 1:
        return str(mains[0])
    message = f"a container name must be specified for pod {name}, choose one of: [{' '.join(mains)}]"
    if inits:
        message += f" or one of the init containers: [{' '.join(inits)}]"
    raise errors.bad_request(message)

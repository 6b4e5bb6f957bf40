"""Changes to a TrafficPolicy as options of a command say them. Pure."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from mesh_api.policy_values import listed, meant
from meshctl.errors import MeshctlError

Object = dict[str, Any]


def subset(text: str) -> tuple[str, dict[str, str]]:
    """Read NAME=key:value[,key:value]. Raises MeshctlError."""
    name, equals, rest = text.partition("=")
    labels: dict[str, str] = {}
    for item in rest.split(","):
        key, colon, value = item.partition(":")
        if not (name and equals and key and colon):
            raise MeshctlError(f"--subset {text}: expected NAME=LABEL:VALUE[,LABEL:VALUE]")
        labels[key] = value
    return name, labels


def split(text: str, subsets: Mapping[str, object]) -> list[Object]:
    """Read v1=90,v2=10 or service/NAME[:PORT]=10. Raises MeshctlError."""
    arms: list[Object] = []
    for item in text.split(","):
        name, _, weight = item.rpartition("=")
        if not name or not weight.isascii() or not weight.isdigit():
            raise MeshctlError(f"--split {text}: expected SUBSET=WEIGHT[,SUBSET=WEIGHT], got {item!r}")
        arm: Object = {"weight": int(weight)}
        kind, slash, service = name.partition("/")
        if slash and kind == "service":
            arm["service"], colon, port = service.partition(":")
            if colon:
                arm["port"] = _number("--split", port)
        elif name in subsets:
            arm["subset"] = name
        else:
            known = f"there are {listed(sorted(subsets), 'and')}" if subsets else "none is defined"
            raise MeshctlError(
                f"--split {text}: there is no subset {name!r}; {known}{meant(name, subsets)}; "
                f"define it with --subset {name}=LABEL:VALUE"
            )
        arms.append(arm)
    return arms


def fault(option: str, text: str) -> tuple[float, str]:
    """Read PERCENT:WHAT. Raises MeshctlError."""
    percent, colon, what = text.partition(":")
    try:
        share = float(percent.removesuffix("%"))
    except ValueError:
        share = -1
    if not colon or not what or not 0 <= share <= 100:
        example = "5:2s" if option == "--fault-delay" else "5:503"
        raise MeshctlError(
            f"{option} {text}: expected PERCENT:{'TIME' if 'delay' in option else 'STATUS'} such as {example}"
        )
    return (int(share) if share.is_integer() else share), what


def _number(option: str, text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise MeshctlError(f"{option}: expected a number, got {text!r}")
    return int(text)


def put(spec: Object, path: str, value: object) -> None:
    """Set `a.b.c` of a spec."""
    *way, last = path.split(".")
    place = spec
    for step in way:
        inner = place.get(step)
        place[step] = place = inner if isinstance(inner, dict) else {}
    place[last] = value


def take(spec: Object, path: str) -> None:
    """Remove `a.b.c` of a spec, and what is empty without it. Raises MeshctlError where it is not there."""
    places = [spec]
    steps = path.split(".")
    for step in steps[:-1]:
        inner = places[-1].get(step)
        if not isinstance(inner, dict):
            raise MeshctlError(f"--unset {path}: the policy says nothing there")
        places.append(inner)
    if steps[-1] not in places[-1]:
        raise MeshctlError(
            f"--unset {path}: the policy says nothing there{meant(steps[-1], map(str, places[-1]))}"
        )
    del places[-1][steps[-1]]
    for place, step in zip(reversed(places[:-1]), reversed(steps[:-1]), strict=True):
        if not place[step]:
            del place[step]


def route(spec: Object, name: str | None) -> Object:
    """The route that options are about: the one of a name, else the one for all requests, made if need be.

    Raises:
        MeshctlError: there is no route of that name.
    """
    routes = spec.setdefault("routes", [])
    if name is not None:
        for each in routes:
            if each.get("name") == name:
                found: Object = each
                return found
        names = [str(each["name"]) for each in routes if each.get("name")]
        known = f"there are {listed(names, 'and')}" if names else "no route has a name"
        raise MeshctlError(f"--route {name}: there is no such route; {known}{meant(name, names)}")
    for each in routes:
        if not each.get("match"):
            last: Object = each
            return last
    routes.append({"to": [{}]})
    new: Object = routes[-1]
    return new


def edited(
    spec: Object,
    *,
    fields: Mapping[str, object],
    subsets: Sequence[str] = (),
    weights: str | None = None,
    delay: str | None = None,
    abort: str | None = None,
    route_name: str | None = None,
    unset: Sequence[str] = (),
) -> Object:
    """A spec with all changes made.

    Args:
        fields: by path, such as `timeouts.request`.

    Raises:
        MeshctlError: an option that cannot be read, or that names what is not there.
    """
    new = copy.deepcopy(spec)
    for path in unset:
        take(new, path)
    for text in subsets:
        name, labels = subset(text)
        new.setdefault("subsets", {}).setdefault(name, {})["labels"] = labels
    for path, value in fields.items():
        put(new, path, value)
    if weights is not None:
        place = route(new, route_name)
        arms = split(weights, new.get("subsets") or {})
        for other in ("redirect", "respond"):
            place.pop(other, None)
        place["to"] = arms
    if delay is not None:
        share, time = fault("--fault-delay", delay)
        put(route(new, route_name), "fault.delay", {"percent": share, "fixed": time})
    if abort is not None:
        share, status = fault("--fault-abort", abort)
        field = "grpcStatus" if status.startswith("grpc-") else "status"
        number = _number("--fault-abort", status.removeprefix("grpc-"))
        put(route(new, route_name), "fault.abort", {"percent": share, field: number})
    return new

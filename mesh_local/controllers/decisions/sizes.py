"""How many pods a Deployment may have too many or too few of while it rolls out."""

import math
from collections.abc import Iterable

from mesh_local.machinery.objects import Object, dig

INT32_MAX = 2**31 - 1


def replicas_of(obj: Object) -> int:
    """`spec.replicas` of a Deployment or a ReplicaSet."""
    return int(dig(obj, "spec", "replicas", default=1))


def total(sets: Iterable[Object]) -> int:
    return sum(map(replicas_of, sets))


def counted(sets: Iterable[Object], field: str) -> int:
    """The sum of one field of the status."""
    return sum(int(dig(s, "status", field, default=0)) for s in sets)


def is_rolling(deployment: Object) -> bool:
    return bool(dig(deployment, "spec", "strategy", "type", default="RollingUpdate") == "RollingUpdate")


def max_surge(deployment: Object) -> int:
    return _bounds(deployment)[0]


def max_unavailable(deployment: Object) -> int:
    """At most all of them."""
    return min(_bounds(deployment)[1], replicas_of(deployment))


def _bounds(deployment: Object) -> tuple[int, int]:
    """maxSurge rounded up and maxUnavailable rounded down; they are not both 0, or nothing could move."""
    if not is_rolling(deployment):
        return 0, 0
    rolling = dig(deployment, "spec", "strategy", "rollingUpdate", default={})
    replicas = replicas_of(deployment)
    surge = _scaled(rolling.get("maxSurge", "25%"), replicas, up=True)
    unavailable = _scaled(rolling.get("maxUnavailable", "25%"), replicas, up=False)
    return (surge, unavailable) if surge or unavailable else (0, 1)


def _scaled(value: int | str, replicas: int, *, up: bool) -> int:
    """An IntOrString of pods or of percent of `replicas`."""
    if isinstance(value, int):
        return value
    percent = int(value.removesuffix("%"))
    return math.ceil(percent * replicas / 100) if up else percent * replicas // 100


def has_deadline(deployment: Object) -> bool:
    """Whether progressDeadlineSeconds is set; the largest integer means it is not."""
    return bool(dig(deployment, "spec", "progressDeadlineSeconds", default=INT32_MAX) != INT32_MAX)

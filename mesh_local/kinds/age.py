"""Ages as kubectl prints them (apimachinery's `duration.HumanDuration`)."""

from datetime import datetime, timedelta

from mesh_local.machinery.objects import Object, meta, parse_time

UNKNOWN = "<unknown>"
_DAY = 24
_YEAR = 24 * 365


def age(delta: timedelta) -> str:
    """`5s`, `3m2s`, `4d`: two units where the first is small, one where it is large."""
    total = delta.total_seconds()
    seconds = int(total)
    if seconds < -1:
        return "<invalid>"
    if seconds < 120:
        return f"{max(seconds, 0)}s"
    minutes, second = divmod(seconds, 60)
    if minutes < 10:
        return _two(minutes, "m", second, "s")
    if minutes < 3 * 60:
        return f"{minutes}m"
    hours, minute = divmod(minutes, 60)
    if hours < 8:
        return _two(hours, "h", minute, "m")
    if hours < 2 * _DAY:
        return f"{hours}h"
    if hours < 8 * _DAY:
        return _two(hours // _DAY, "d", hours % _DAY, "h")
    if hours < 2 * _YEAR:
        return f"{hours // _DAY}d"
    if hours < 8 * _YEAR:
        return _two(hours // _YEAR, "y", hours // _DAY % 365, "d")
    return f"{hours // _YEAR}y"


def since(text: str | None, now: datetime) -> str:
    """The age of an RFC 3339 moment; `<unknown>` for none."""
    return age(now - parse_time(text)) if text else UNKNOWN


def age_of(obj: Object, now: datetime) -> str:
    """The age of an object, by its creationTimestamp."""
    return since(meta(obj).get("creationTimestamp"), now)


def _two(large: int, large_unit: str, small: int, small_unit: str) -> str:
    return f"{large}{large_unit}{small}{small_unit}" if small else f"{large}{large_unit}"

"""How much of its memory limit this process's control group uses, versions 1 and 2."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

MOUNT = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")
_NO_LIMIT = 1 << 60
"""Version 1 says "none" as the largest number of pages."""
_READ_BYTES = 16 * 1024


class Usage(NamedTuple):
    """Of the level that is nearest to its limit."""

    used: int = 0
    """As the kubelet counts it: without file pages that the kernel would give up first."""
    limit: int = 0
    """0: there is none."""

    @property
    def percent(self) -> float:
        return self.used * 100 / self.limit if self.limit else 0.0


class _Files(NamedTuple):
    limit: str
    usage: str
    reclaimable: bytes


_V2 = _Files("memory.max", "memory.current", b"inactive_file")
_V1 = _Files("memory.limit_in_bytes", "memory.usage_in_bytes", b"total_inactive_file")


class Memory:
    """Reads the process's own group and those above it, as far as they can be seen from here.

    Args:
        directory: of the group; by default it is looked up.
    """

    def __init__(self, directory: str = "") -> None:
        places = _up(Path(directory), Path(directory)) if directory else _own_places(MOUNT, OWN)
        self._levels = [
            (place, files) for place in places for files in (_V2, _V1) if (place / files.limit).exists()
        ]

    def read(self, above_percent: float = 0.0) -> Usage:
        """The usage now; exact only where it is more than `above_percent`, which spares a costlier file."""
        worst = Usage()
        for place, files in self._levels:
            limit, used = _number(place / files.limit), _number(place / files.usage)
            if not limit or limit >= _NO_LIMIT:
                continue
            usage = Usage(used, limit)
            if usage.percent > above_percent:
                reclaimable = _stat(place / "memory.stat", files.reclaimable)
                usage = Usage(max(used - reclaimable, 0), limit)
            worst = max(worst, usage, key=lambda each: each.percent)
        return worst


def _own_places(mount: Path, own: Path) -> Sequence[Path]:
    for line in _text(own).splitlines():
        _hierarchy, _, rest = line.partition(b":")
        controllers, _, path = rest.partition(b":")
        if controllers and b"memory" not in controllers.split(b","):
            continue
        base = mount / "memory" if controllers else mount
        place = base / os.fsdecode(path).lstrip("/")
        # Without a cgroup namespace a container reads the host's path, and sees its own group at the root.
        places = _up(place if ".." not in place.parts and place.is_dir() else base, base)
        if any((each / files.limit).exists() for each in places for files in (_V2, _V1)):
            return places
    return ()


def _up(place: Path, top: Path) -> Sequence[Path]:
    if place == top:
        return (place,)
    return (place, *(each for each in place.parents if each == top or top in each.parents))


def _number(path: Path) -> int:
    """What the file says; 0 for "max", and for what cannot be read."""
    text = _text(path).strip()
    return int(text) if text.isdigit() else 0


def _stat(path: Path, key: bytes) -> int:
    for line in _text(path).splitlines():
        name, _, value = line.partition(b" ")
        if name == key and value.isdigit():
            return int(value)
    return 0


def _text(path: Path) -> bytes:
    try:
        with path.open("rb", buffering=0) as file:
            return file.read(_READ_BYTES) or b""
    except OSError:
        return b""  # the group has no such file: it has no limit that we could mind

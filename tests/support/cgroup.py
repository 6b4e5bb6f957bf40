"""A control group's memory files, in a directory."""

from __future__ import annotations

from pathlib import Path

MIB = 1024 * 1024


def group(place: Path, limit: int | str, used: int, *, inactive: int = 0, version: int = 2) -> Path:
    """Write them; returns `place`."""
    names = {
        2: ("memory.max", "memory.current", ""),
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    }
    limit_name, usage_name, prefix = names[version]
    place.mkdir(parents=True, exist_ok=True)
    (place / limit_name).write_text(f"{limit}\n")
    (place / usage_name).write_text(f"{used}\n")
    (place / "memory.stat").write_text(f"anon 1\ninactive_anon 7\n{prefix}inactive_file {inactive}\nslab 3\n")
    return place

"""Writes a volume's files so that a reader sees all of an update or nothing of it.

The layout is that of Kubernetes' AtomicWriter: the files are in a directory `..TIME.RANDOM`, the symlink
`..data` names the present one, and each top-level entry is a symlink through `..data`.
"""

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath

from mesh_local.kubelet.types import VolumeError

DATA = "..data"


@dataclass(frozen=True, slots=True)
class File:
    """One file of a volume.

    Args:
        owner: user id, where it is not root.
    """

    data: bytes
    mode: int
    owner: int = 0


def check_path(path: str) -> str:
    """A path below the volume. Raises VolumeError."""
    parts = PurePosixPath(path).parts
    if not path or path.startswith("/") or ".." in parts or path.startswith(".."):
        raise VolumeError(f"invalid path: {path!r}: must be relative, without '..'")
    return str(PurePosixPath(path))


def write(target: Path, files: Mapping[str, File], now: datetime, group: int | None = None) -> bool:
    """Make `target` hold exactly `files` (by relative path); False if it does already.

    Args:
        group: the pod's fsGroup, which may read everything.

    Raises:
        VolumeError: a path leads out of the volume.
    """
    wanted = {check_path(path): file for path, file in files.items()}
    link = target / DATA
    old = Path(os.readlink(link)).name if link.is_symlink() else ""
    if old and _content(target / old) == {path: file.data for path, file in wanted.items()}:
        return False
    new = Path(tempfile.mkdtemp(prefix=f"..{now:%Y_%m_%d_%H_%M_%S}.", dir=target))
    new.chmod(0o755)
    for path, file in wanted.items():
        _write_file(new, path, file, group)
    temporary = target / "..data_tmp"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(new.name)
    temporary.replace(link)
    top = {path.split("/", 1)[0] for path in wanted}
    for name in top:
        if not (target / name).is_symlink():
            (target / name).symlink_to(f"{DATA}/{name}")
    for entry in target.iterdir():
        if entry.is_symlink() and entry.name != DATA and entry.name not in top:
            entry.unlink()
    if old:
        shutil.rmtree(target / old)
    if group is not None:
        for directory in (target, new, *(p for p in new.rglob("*") if p.is_dir())):
            os.chown(directory, -1, group)
            directory.chmod(directory.stat().st_mode | 0o2550)
    return True


def _write_file(root: Path, path: str, file: File, group: int | None) -> None:
    place = root / path
    for parent in reversed(place.relative_to(root).parents[:-1]):
        (root / parent).mkdir(exist_ok=True, mode=0o755)
        (root / parent).chmod(0o755)
    place.write_bytes(file.data)
    os.chown(place, file.owner, -1 if group is None else group)
    place.chmod(file.mode | (0 if group is None else 0o440))


def _content(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}

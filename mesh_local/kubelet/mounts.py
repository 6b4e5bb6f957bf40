"""Mounts that the kubelet makes in its own mount namespace, and their removal."""

import contextlib
import errno
from pathlib import Path

from mesh_local.kubelet.shim import syscalls

# Mount points that containers must not see through their root: kernel interfaces, and what others own.
_NOT_SHOWN = ("/proc", "/sys", "/dev", "/run", "/tmp", "/mnt", "/media")
_NOT_FILES = frozenset(
    {"tmpfs", "devtmpfs", "proc", "sysfs", "cgroup", "cgroup2", "nsfs", "autofs", "overlay"}
)


def _unescape(text: str) -> str:
    """mountinfo writes space, tab, newline and backslash in octal (proc(5))."""
    return text.encode().decode("unicode_escape").encode("latin-1").decode(errors="surrogateescape")


def _table() -> list[tuple[str, str]]:
    """(mount point, file system type) of every mount, oldest first."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        found.append((_unescape(before.split()[4]), after.split()[0]))
    return found


def mount_tmpfs(target: Path, *, mode: int, size: int | None = None) -> None:
    """Mount memory at `target`, unless something is mounted there already."""
    if is_mount(target):
        return
    limit = "" if size is None else f",size={size}"
    flags = syscalls.MS_NOSUID | syscalls.MS_NODEV
    syscalls.mount("tmpfs", str(target), "tmpfs", flags, f"mode={mode:04o}{limit}")


def is_mount(target: Path) -> bool:
    return any(point == str(target) for point, _ in _table())


def unmount_under(root: Path) -> None:
    """Unmount everything at and below `root`, newest first."""
    prefix = str(root) + "/"
    for point, _ in reversed(_table()):
        if point == str(root) or point.startswith(prefix):
            with contextlib.suppress(FileNotFoundError):
                try:
                    syscalls.unmount(point)
                except OSError as exc:
                    if exc.errno != errno.EINVAL:  # EINVAL: no longer a mount point
                        raise


def host_mounts() -> list[str]:
    """File systems mounted below /, which an overlay of / does not show."""
    return sorted(
        {
            point
            for point, kind in _table()
            if point != "/"
            and kind not in _NOT_FILES
            and not any(point == hidden or point.startswith(hidden + "/") for hidden in _NOT_SHOWN)
            and Path(point).exists()
        }
    )

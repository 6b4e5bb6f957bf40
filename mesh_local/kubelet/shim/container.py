"""What happens in the child between fork and exec: the container's root, identity and program."""

import os
import signal
import socket
import stat
from typing import Any

from mesh_local.kubelet.shim import syscalls as sys_
from mesh_local.kubelet.shim.syscalls import mount

Spec = dict[str, Any]

# Memory that the writable layer of one container may take.
UPPER_BYTES = 1 << 30
_OLD = "/.old"
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_DEVICE_LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}
# What runc masks and protects (runtime-tools' defaults).
_MASKED_FILES = ("/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/sched_debug")
_READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


class StartError(Exception):
    """The container cannot start; the text is for its status."""


def become(spec: Spec, directory: str) -> None:
    """Turn this freshly forked process into the container. Returns only by raising.

    Raises:
        StartError, OSError: what went wrong.
    """
    _enter_network(spec["netns"])
    for name, value in spec["sysctls"].items():
        with open("/proc/sys/" + name.replace(".", "/"), "w") as file:
            file.write(value)
    sys_.unshare(sys_.CLONE_NEWNS | sys_.CLONE_NEWUTS | sys_.CLONE_NEWIPC)
    socket.sethostname(spec["hostname"])
    _build_root(spec, directory)
    os.umask(0o022)
    os.makedirs(spec["cwd"], exist_ok=True)
    if spec["readonly_root"]:
        volumes = {os.path.realpath(bind["target"]) for bind in spec["binds"]}
        for path in {"/", *spec["fresh"]} - volumes:
            _restrict(path, sys_.MS_RDONLY)
    take_identity(spec)
    execute(spec, spec["argv"])


def enter(spec: Spec, pidfd: int, argv: list[str]) -> None:
    """Turn this freshly forked process into a further command of the running container.

    The process is in the container's PID namespace already, as every child of the shim is.
    """
    # Until exec this is the shim's program with its descriptors: nobody in the container may look into it.
    sys_.prctl(sys_.PR_SET_DUMPABLE, 0)
    sys_.setns(pidfd, sys_.CLONE_NEWNS | sys_.CLONE_NEWUTS | sys_.CLONE_NEWIPC | sys_.CLONE_NEWNET)
    os.umask(0o022)
    take_identity(spec)
    execute(spec, argv)


def _enter_network(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        sys_.setns(fd, sys_.CLONE_NEWNET)
    finally:
        os.close(fd)


def _build_root(spec: Spec, directory: str) -> None:
    mount(None, "/", None, sys_.MS_PRIVATE | sys_.MS_REC)
    base = os.path.join(directory, "fs")
    os.makedirs(base, exist_ok=True)
    # Device files work in /dev only: there is no device cgroup that would refuse the host's disks.
    devices = 0 if spec["privileged"] else sys_.MS_NODEV
    mount("tmpfs", base, "tmpfs", sys_.MS_NODEV, f"mode=0700,size={UPPER_BYTES}")
    upper, work, root = (os.path.join(base, part) for part in ("upper", "work", "root"))
    for path in (upper, work, root):
        os.mkdir(path, 0o755)
    mount("overlay", root, "overlay", devices, f"lowerdir=/,upperdir={upper},workdir={work}")
    # Everything of the host is taken in hand before the container's root: from then on no path leads to
    # the host, whatever mount points and symlinks the container and its volumes choose.
    seen = [(path, sys_.open_tree(_opened(path), recursive=False)) for path in spec["host_mounts"]]
    binds = [(bind, sys_.open_tree(_opened(bind["source"]), recursive=True)) for bind in spec["binds"]]
    kernel = ["/dev"] if spec["privileged"] else [f"/dev/{name}" for name in _DEVICES]
    device_trees = [(path, sys_.open_tree(_opened(path), recursive=True)) for path in kernel]
    os.mkdir(root + _OLD)
    sys_.pivot_root(root, root + _OLD)
    os.chdir("/")
    sys_.unmount(_OLD)
    os.rmdir(_OLD)
    for path, tree in seen:
        _attach(tree, path, sys_.MS_RDONLY | devices)
    for path in spec["fresh"]:
        if os.path.isdir(path):
            mount("tmpfs", path, "tmpfs", sys_.MS_NODEV | sys_.MS_NOSUID, f"mode={spec['fresh'][path]}")
    for path in spec["hidden"]:
        if os.path.isdir(path):
            mount("tmpfs", path, "tmpfs", sys_.MS_RDONLY, "mode=0755,size=4k")
    _kernel_file_systems(bool(spec["privileged"]), device_trees)
    for bind, tree in binds:
        _attach(tree, bind["target"], (sys_.MS_RDONLY if bind["readonly"] else 0) | devices)


def _opened(path: str) -> int:
    """The host's file of this path. Raises StartError if a symlink, put there just now, leads elsewhere."""
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    if os.readlink(f"/proc/self/fd/{fd}") != path:
        raise StartError(f"{path}: it leads elsewhere")
    return fd


def _restrict(path: str, flags: int) -> None:
    """Add flags to those of a mount; statvfs(3) has the same bits for the four that matter."""
    kept = os.statvfs(path).f_flag & (sys_.MS_RDONLY | sys_.MS_NOSUID | sys_.MS_NODEV | sys_.MS_NOEXEC)
    mount(None, path, None, sys_.MS_REMOUNT | sys_.MS_BIND | kept | flags)


def _attach(tree: int, target: str, flags: int) -> None:
    """Mount a detached tree, and close it."""
    target = os.path.realpath(target)
    if stat.S_ISDIR(os.fstat(tree).st_mode):
        os.makedirs(target, exist_ok=True)
    elif not os.path.lexists(target):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))
    sys_.move_mount(tree, target)
    os.close(tree)
    if flags:
        _restrict(target, flags)


def _kernel_file_systems(privileged: bool, device_trees: list[tuple[str, int]]) -> None:
    safe = sys_.MS_NOSUID | sys_.MS_NODEV | sys_.MS_NOEXEC
    mount("proc", "/proc", "proc", safe)
    mount("sysfs", "/sys", "sysfs", safe | (0 if privileged else sys_.MS_RDONLY))
    if not privileged:
        mount("tmpfs", "/dev", "tmpfs", sys_.MS_NOSUID | sys_.MS_NODEV, "mode=755,size=65536k")
    for path, tree in device_trees:
        _attach(tree, path, 0)
    if not privileged:
        _devices()
        for path in _MASKED_FILES:
            if os.path.exists(path):
                mount("/dev/null", path, None, sys_.MS_BIND)
        for path in _READ_ONLY:
            if os.path.exists(path):
                mount(path, path, None, sys_.MS_BIND | sys_.MS_REC)
                _restrict(path, sys_.MS_RDONLY)


def _devices() -> None:
    for name, target in _DEVICE_LINKS.items():
        os.symlink(target, f"/dev/{name}")
    os.mkdir("/dev/pts")
    mount(
        "devpts", "/dev/pts", "devpts", sys_.MS_NOSUID | sys_.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620"
    )
    os.mkdir("/dev/shm")
    mount("shm", "/dev/shm", "tmpfs", sys_.MS_NOSUID | sys_.MS_NODEV, "mode=1777,size=65536k")


def take_identity(spec: Spec) -> None:
    """Set groups, user and capabilities.

    As on Kubernetes, a user other than root has no effective capabilities, only a bounding set.
    """
    wanted: list[int] = spec["capabilities"]
    with open("/proc/sys/kernel/cap_last_cap") as file:
        last = int(file.read())
    for number in range(last + 1):
        if number not in wanted:
            sys_.prctl(sys_.PR_CAPBSET_DROP, number)
    os.setgroups(spec["groups"])
    os.setresgid(spec["gid"], spec["gid"], spec["gid"])
    os.setresuid(spec["uid"], spec["uid"], spec["uid"])
    sys_.set_capabilities([n for n in wanted if n <= last] if spec["uid"] == 0 else [])
    if spec["no_new_privs"]:
        sys_.prctl(sys_.PR_SET_NO_NEW_PRIVS, 1)
    # The container does not outlive its shim. A change of identity clears the death signal: once more.
    sys_.prctl(sys_.PR_SET_PDEATHSIG, signal.SIGKILL)


def execute(spec: Spec, argv: list[str]) -> None:
    """Replace this process by the program. Raises StartError with runc's wording."""
    env: dict[str, str] = spec["env"]
    try:
        os.chdir(spec["cwd"])
    except OSError as exc:
        reason = _lower(exc)
        raise StartError(f'chdir to cwd ("{spec["cwd"]}") set in config.json failed: {reason}') from None
    path = _find(argv[0], env.get("PATH", ""))
    # What the interpreter ignores, its children would ignore too.
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    try:
        os.execve(path, argv, env)
    except OSError as exc:
        raise StartError(f"exec {path}: {_lower(exc)}") from None


def _find(program: str, search: str) -> str:
    if "/" in program:
        try:
            mode = os.stat(program).st_mode
        except OSError as exc:
            raise StartError(f'exec: "{program}": stat {program}: {_lower(exc)}') from None
        if os.path.isdir(program):
            raise StartError(f'exec: "{program}": is a directory')
        if not mode & 0o111:
            raise StartError(f'exec: "{program}": permission denied')
        return program
    for directory in search.split(":"):
        path = os.path.join(directory or ".", program)
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    raise StartError(f'exec: "{program}": executable file not found in $PATH')


def _lower(exc: OSError) -> str:
    text = exc.strerror or "unknown error"
    return text[:1].lower() + text[1:]

"""From a container of a pod to what its shim is told to run."""

import os
import pwd
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mesh_local.kubelet.environment import Lookup, container_env, expand
from mesh_local.kubelet.fields import Node
from mesh_local.kubelet.records import Record
from mesh_local.kubelet.types import DEFAULT_PATH, PREFIX_TARGET, ConfigError, KubeletOptions, VolumeError
from mesh_local.kubelet.volumes import Volumes, sub_path
from mesh_local.machinery.objects import Object, dig, name_of, namespace_of, uid_of

# capability(7): the names in the order of their numbers.
CAPABILITIES = (
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
)
# What containerd gives a container that asks for nothing.
DEFAULT_CAPABILITIES = frozenset(
    {
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "KILL",
        "SETGID",
        "SETUID",
        "SETPCAP",
        "NET_BIND_SERVICE",
        "NET_RAW",
        "SYS_CHROOT",
        "MKNOD",
        "AUDIT_WRITE",
        "SETFCAP",
    }
)
# Directories that begin empty in every container, with their modes.
FRESH = {"/tmp": "1777", "/run": "0755", "/var/tmp": "1777"}
# What containerd sets in every network namespace: any user may listen on any port, and ping.
_NETWORK_SYSCTLS = {"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2147483647"}
_UNSUPPORTED = ("hostPID", "hostIPC", "shareProcessNamespace")


class NoCommand(Exception):
    """The container names no command: there is no image that could have one."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a container's spec is made from, beside the pod.

    Args:
        netns: path of the network namespace.
        lookup: ConfigMaps and Secrets of the pod's namespace.
        services: variables for Services.
        host_mounts: file systems of the host to show.
        files: the pod's own files that each container sees: target -> source.
        termination_log: the file for the container's last words.
    """

    options: KubeletOptions
    node: Node
    netns: str
    hostname: str
    pod_ips: Sequence[str]
    lookup: Lookup
    services: dict[str, str]
    volumes: Volumes
    host_mounts: Sequence[str]
    files: dict[str, Path]
    termination_log: Path


def build(pod: Object, record: Record, around: Surroundings) -> Object:
    """The shim's spec.json.

    Raises:
        NoCommand: there is no command to run.
        ConfigError: the spec names something that is missing, or not supported.
    """
    spec = record.spec
    if not spec.get("command"):
        raise NoCommand(
            f'Container "{record.name}" has no command: the local cluster pulls no images'
            f' (here "{spec.get("image", "")}") and runs commands from the host\'s files; set'
            " `command` to the program and its arguments"
        )
    check_supported(pod, spec)
    uid, gid, groups = identity(pod, spec)
    env = _environment(pod, spec, around, uid)
    security = spec.get("securityContext") or {}
    privileged = bool(security.get("privileged"))
    return {
        "argv": [expand(str(a), env) for a in [*spec["command"], *(spec.get("args") or ())]],
        "env": env,
        "cwd": str(spec.get("workingDir") or "/"),
        "hostname": around.hostname,
        "netns": around.netns,
        "uid": uid,
        "gid": gid,
        "groups": groups,
        "capabilities": capabilities(security),
        "privileged": privileged,
        "no_new_privs": security.get("allowPrivilegeEscalation") is False and not privileged,
        "readonly_root": bool(security.get("readOnlyRootFilesystem")),
        "host_mounts": list(around.host_mounts),
        "fresh": FRESH,
        "hidden": [str(path) for path in (*around.options.hidden, around.options.pods)],
        "sysctls": sysctls(pod),
        "binds": _binds(spec, env, around),
        "log_max_bytes": around.options.log_max_bytes,
    }


def check_supported(pod: Object, spec: Object) -> None:
    """Refuse what would silently be something else than on Kubernetes. Raises ConfigError."""
    for name in _UNSUPPORTED:
        if dig(pod, "spec", name):
            raise ConfigError(f"the local cluster does not support {name}")
    if dig(pod, "spec", "hostUsers") is False:
        raise ConfigError("the local cluster does not support hostUsers: false")
    if spec.get("volumeDevices"):
        raise ConfigError("the local cluster does not support volumeDevices")


def identity(pod: Object, spec: Object) -> tuple[int, int, list[int]]:
    """User, group and supplementary groups.

    Raises:
        ConfigError: runAsNonRoot is asked for, and the user is root.
    """
    general = dig(pod, "spec", "securityContext", default={})
    own = spec.get("securityContext") or {}
    merged = general | {key: value for key, value in own.items() if value is not None}
    where = f'(pod: "{name_of(pod)}_{namespace_of(pod)}({uid_of(pod)})", container: {spec["name"]})'
    user = merged.get("runAsUser")
    if merged.get("runAsNonRoot") and not user:
        if user is None:
            raise ConfigError(f"container has runAsNonRoot and image will run as root {where}")
        raise ConfigError(f"container's runAsUser breaks non-root policy {where}")
    uid = int(user or 0)
    try:
        account: pwd.struct_passwd | None = pwd.getpwuid(uid)
    except KeyError:
        account = None
    group = merged.get("runAsGroup")
    gid = int(group) if group is not None else (account.pw_gid if account else 0)
    wanted = {gid, *general.get("supplementalGroups", ())}
    if general.get("fsGroup") is not None:
        wanted.add(int(general["fsGroup"]))
    if account is not None and general.get("supplementalGroupsPolicy") != "Strict":
        wanted |= set(os.getgrouplist(account.pw_name, gid))
    return uid, gid, sorted(wanted)


def sysctls(pod: Object) -> dict[str, str]:
    """Kernel parameters of the pod's network namespace.

    Raises:
        ConfigError: a parameter is not one of the network namespace.
    """
    if dig(pod, "spec", "hostNetwork"):
        return {}
    found = dict(_NETWORK_SYSCTLS)
    for item in dig(pod, "spec", "securityContext", "sysctls", default=[]):
        name = str(item["name"]).replace("/", ".")
        if not re.fullmatch(r"net(\.[A-Za-z0-9_-]+)+", name):
            raise ConfigError(
                f'forbidden sysctl: "{item["name"]}": the local cluster sets those of net. only'
            )
        found[name] = str(item["value"])
    return found


def capabilities(security: Object) -> list[int]:
    """The numbers of the capabilities that a container's securityContext gives.

    Raises:
        ConfigError: a name is not a capability.
    """
    if security.get("privileged"):
        return held()
    wanted = set(DEFAULT_CAPABILITIES)
    drop = [_capability(n) for n in dig(security, "capabilities", "drop", default=[])]
    add = [_capability(n) for n in dig(security, "capabilities", "add", default=[])]
    if "ALL" in add:
        wanted = {CAPABILITIES[number] for number in held() if number < len(CAPABILITIES)}
    if "ALL" in drop:
        wanted = set()
    wanted = (wanted - set(drop)) | (set(add) - {"ALL"})
    return [number for number, name in enumerate(CAPABILITIES) if name in wanted]


def held() -> list[int]:
    """The capabilities that this process has: they are what ALL means, for it has no others to give."""
    mask = next(
        line.split()[1]
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("CapPrm:")
    )
    return [number for number in range(64) if int(mask, 16) >> number & 1]


def _capability(name: str) -> str:
    found = str(name).upper().removeprefix("CAP_")
    if found != "ALL" and found not in CAPABILITIES:
        raise ConfigError(f'unknown capability "CAP_{found}"')
    return found


def _environment(pod: Object, spec: Object, around: Surroundings, uid: int) -> dict[str, str]:
    try:
        home = pwd.getpwuid(uid).pw_dir
    except KeyError:
        home = "/"
    path = f"{PREFIX_TARGET}/bin:{DEFAULT_PATH}" if around.options.prefix else DEFAULT_PATH
    own = container_env(spec, pod, around.node, around.pod_ips, around.lookup, around.services)
    return {"PATH": path, "HOME": home, "HOSTNAME": around.hostname} | own


def _binds(spec: Object, env: dict[str, str], around: Surroundings) -> list[Object]:
    # The shim follows no symlink in a source: a container could put one there.
    binds = [_bind(source.resolve(), target, False) for target, source in around.files.items()]
    if around.options.prefix is not None:
        binds.append(_bind(around.options.prefix.resolve(), PREFIX_TARGET, True))
    for mount in spec.get("volumeMounts") or ():
        try:
            source = Path(os.path.realpath(around.volumes.path(mount["name"])))
            part = mount.get("subPath") or expand(str(mount.get("subPathExpr") or ""), env)
            if part:
                source = sub_path(source, part)
        except (VolumeError, OSError) as exc:
            raise ConfigError(str(exc)) from exc
        readonly = bool(mount.get("readOnly")) or around.volumes.is_read_only(mount["name"])
        binds.append(_bind(source, mount["mountPath"], readonly))
    last_words = spec.get("terminationMessagePath") or "/dev/termination-log"
    binds.append(_bind(around.termination_log.resolve(), last_words, False))
    # A mount inside another comes after it.
    return sorted(binds, key=lambda bind: bind["target"].rstrip("/").count("/"))


def _bind(source: Path, target: str, readonly: bool) -> Object:
    return {"source": str(source), "target": target, "readonly": readonly}

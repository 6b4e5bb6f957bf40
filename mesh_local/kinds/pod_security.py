"""The Pod Security Standards (KEP-2579): which level a pod spec violates, in the words of Kubernetes.

`violations` gives the checks that fail, in Kubernetes' order: those of `baseline` by their id, then those of
`restricted`, which take the place of the weaker check of the same matter.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from mesh_local.machinery.errors import go_quote
from mesh_local.machinery.objects import Object, dig

PRIVILEGED, BASELINE, RESTRICTED = LEVELS = ("privileged", "baseline", "restricted")

_DEFAULT_CAPABILITIES = frozenset(
    {
        "AUDIT_WRITE",
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "KILL",
        "MKNOD",
        "NET_BIND_SERVICE",
        "SETFCAP",
        "SETGID",
        "SETPCAP",
        "SETUID",
        "SYS_CHROOT",
    }
)
_SAFE_SYSCTLS = frozenset(
    {
        "kernel.shm_rmid_forced",
        *(
            f"net.ipv4.{name}"
            for name in (
                "ip_local_port_range",
                "ip_local_reserved_ports",
                "ip_unprivileged_port_start",
                "ping_group_range",
                "tcp_fin_timeout",
                "tcp_keepalive_intvl",
                "tcp_keepalive_probes",
                "tcp_keepalive_time",
                "tcp_rmem",
                "tcp_syncookies",
                "tcp_wmem",
            )
        ),
    }
)
_SELINUX_TYPES = ("", "container_t", "container_init_t", "container_kvm_t", "container_engine_t")
_VOLUMES = frozenset(
    {
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "image",
        "persistentVolumeClaim",
        "projected",
        "secret",
    }
)
_SECCOMP = ("RuntimeDefault", "Localhost")


@dataclass(frozen=True, slots=True)
class Violation:
    reason: str
    detail: str

    def __str__(self) -> str:
        return f"{self.reason} ({self.detail})"


def violations(spec: Object, level: str) -> list[Violation]:
    """The checks of `level` that a pod spec fails."""
    checks: Iterable[_Check] = ()
    if level == BASELINE:
        checks = _BASELINE.values()
    elif level == RESTRICTED:
        kept = [check for name, check in _BASELINE.items() if name not in _REPLACED]
        checks = (*kept, *_RESTRICTED)
    found = []
    for reason, check in checks:
        if detail := check(spec):
            found.append(Violation(reason, detail))
    return found


def describe(found: Iterable[Violation]) -> str:
    return ", ".join(str(v) for v in found)


def _containers(spec: Object) -> Iterator[tuple[str, Object]]:
    """Name and securityContext of every container."""
    for container in _all(spec):
        yield container.get("name") or "", container.get("securityContext") or {}


def _all(spec: Object) -> Iterator[Object]:
    for key in ("initContainers", "containers", "ephemeralContainers"):
        yield from spec.get(key) or ()


def _quoted(words: Iterable[str]) -> str:
    return ", ".join(go_quote(w) for w in words)


def _plural(word: str, many: bool) -> str:
    return f"{word}s" if many else word


def _who(names: list[str]) -> str:
    """`container "a"`, `containers "a", "b"`."""
    return f"{_plural('container', len(names) > 1)} {_quoted(names)}"


def _setters(pod: bool, names: list[str]) -> str:
    """Who set something: the pod, containers, or both."""
    return " and ".join([*(["pod"] if pod else []), *([_who(names)] if names else [])])


# baseline


def _host_namespaces(spec: Object) -> str:
    return ", ".join(f"{k}=true" for k in ("hostNetwork", "hostPID", "hostIPC") if spec.get(k))


def _host_paths(spec: Object) -> str:
    names = [v.get("name") or "" for v in spec.get("volumes") or () if v.get("hostPath") is not None]
    return f"{_plural('volume', len(names) > 1)} {_quoted(names)}" if names else ""


def _added(spec: Object, allowed: frozenset[str]) -> str:
    names, bad = [], set()
    for name, context in _containers(spec):
        extra = set(dig(context, "capabilities", "add", default=[])) - allowed
        if extra:
            names.append(name)
            bad |= extra
    if not names:
        return ""
    return f"{_who(names)} must not include {_quoted(sorted(bad))} in securityContext.capabilities.add"


def _capabilities_baseline(spec: Object) -> str:
    return _added(spec, _DEFAULT_CAPABILITIES)


def _host_ports(spec: Object) -> str:
    names, ports = [], set()
    for container in _all(spec):
        used = {str(p["hostPort"]) for p in container.get("ports") or () if p.get("hostPort")}
        if used:
            names.append(container.get("name") or "")
            ports |= used
    if not names:
        return ""
    verb = "uses" if len(names) == 1 else "use"
    return f"{_who(names)} {verb} {_plural('hostPort', len(ports) > 1)} {', '.join(sorted(ports))}"


def _hosts_of(container: Object) -> Iterator[str]:
    """Hosts that probes and lifecycle handlers name instead of the Pod's own address."""
    handlers = [container.get(k) for k in ("livenessProbe", "readinessProbe", "startupProbe")]
    handlers += [dig(container, "lifecycle", k) for k in ("postStart", "preStop")]
    for handler in handlers:
        for action in ("httpGet", "tcpSocket"):
            if host := dig(handler, action, "host"):
                yield host


def _probe_hosts(spec: Object) -> str:
    names, hosts = [], set()
    for container in _all(spec):
        used = set(_hosts_of(container))
        if used:
            names.append(container.get("name") or "")
            hosts |= used
    if not names:
        return ""
    verb = "uses" if len(names) == 1 else "use"
    what = _plural("probe or lifecycle host", len(hosts) > 1)
    return f"{_who(names)} {verb} {what} {_quoted(sorted(hosts))}"


def _privileged(spec: Object) -> str:
    names = [n for n, context in _containers(spec) if context.get("privileged")]
    return f"{_who(names)} must not set securityContext.privileged=true" if names else ""


def _proc_mount(spec: Object) -> str:
    bad = {n: c["procMount"] for n, c in _containers(spec) if c.get("procMount", "Default") != "Default"}
    if not bad:
        return ""
    return f"{_who(list(bad))} must not set securityContext.procMount to {_quoted(sorted(set(bad.values())))}"


def _by_type(spec: Object, key: str, is_bad: Callable[[str], bool]) -> tuple[str, list[str]]:
    """Who set `securityContext.KEY.type` to a bad value, and the values."""
    pod = dig(spec, "securityContext", key, "type", default="")
    own = {n: dig(c, key, "type", default="") for n, c in _containers(spec)}
    bad = {n: value for n, value in own.items() if value and is_bad(value)}
    pod_bad = bool(pod) and is_bad(pod)
    values = {*bad.values(), *([pod] if pod_bad else [])}
    return _setters(pod_bad, list(bad)), sorted(values)


def _app_armor(spec: Object) -> str:
    who, values = _by_type(spec, "appArmorProfile", lambda t: t not in _SECCOMP)
    return f"{who} must not set AppArmor profile type to {_quoted(values)}" if who else ""


def _seccomp_baseline(spec: Object) -> str:
    who, values = _by_type(spec, "seccompProfile", lambda t: t not in _SECCOMP)
    return f"{who} must not set securityContext.seccompProfile.type to {_quoted(values)}" if who else ""


def _selinux(spec: Object) -> str:
    pod = _selinux_is_bad(dig(spec, "securityContext", "seLinuxOptions", default={}))
    options = {n: c.get("seLinuxOptions") or {} for n, c in _containers(spec)}
    names = [n for n, given in options.items() if _selinux_is_bad(given)]
    if not pod and not names:
        return ""
    every = [dig(spec, "securityContext", "seLinuxOptions", default={}), *options.values()]
    types = sorted({o.get("type") or "" for o in every} - set(_SELINUX_TYPES))
    faults = [f"{_plural('type', len(types) > 1)} {_quoted(types)}"] if types else []
    faults += [f"{key} may not be set" for key in ("user", "role") if any(o.get(key) for o in every)]
    return f"{_setters(pod, names)} set forbidden securityContext.seLinuxOptions: {'; '.join(faults)}"


def _selinux_is_bad(options: Mapping[str, str]) -> bool:
    return (options.get("type") or "") not in _SELINUX_TYPES or any(options.get(k) for k in ("user", "role"))


def _host_process(spec: Object) -> str:
    pod = bool(dig(spec, "securityContext", "windowsOptions", "hostProcess"))
    names = [n for n, c in _containers(spec) if dig(c, "windowsOptions", "hostProcess")]
    if not pod and not names:
        return ""
    return f"{_setters(pod, names)} must not set securityContext.windowsOptions.hostProcess=true"


def _sysctls(spec: Object) -> str:
    names = [s.get("name") or "" for s in dig(spec, "securityContext", "sysctls", default=[])]
    return ", ".join(n for n in names if n not in _SAFE_SYSCTLS)


# restricted


def _privilege_escalation(spec: Object) -> str:
    names = [n for n, c in _containers(spec) if c.get("allowPrivilegeEscalation") is not False]
    return f"{_who(names)} must set securityContext.allowPrivilegeEscalation=false" if names else ""


def _capabilities_restricted(spec: Object) -> str:
    keep = [n for n, c in _containers(spec) if "ALL" not in dig(c, "capabilities", "drop", default=[])]
    parts = [f'{_who(keep)} must set securityContext.capabilities.drop=["ALL"]'] if keep else []
    if added := _added(spec, frozenset({"NET_BIND_SERVICE"})):
        parts.append(added)
    return "; ".join(parts)


def _volume_types(spec: Object) -> str:
    bad = {}
    for volume in spec.get("volumes") or ():
        kinds = [k for k, v in volume.items() if k != "name" and v is not None and k not in _VOLUMES]
        if kinds:
            bad[volume.get("name") or ""] = kinds[0]
    if not bad:
        return ""
    kinds = sorted(set(bad.values()))
    verb = "uses" if len(bad) == 1 else "use"
    return (
        f"{_plural('volume', len(bad) > 1)} {_quoted(bad)} {verb} restricted "
        f"{_plural('volume type', len(kinds) > 1)} {_quoted(kinds)}"
    )


def _non_root(spec: Object) -> str:
    pod = dig(spec, "securityContext", "runAsNonRoot")
    own = {n: c.get("runAsNonRoot") for n, c in _containers(spec)}
    refused = [n for n, value in own.items() if value is False]
    if pod is False or refused:
        return f"{_setters(pod is False, refused)} must not set securityContext.runAsNonRoot=false"
    silent = [n for n, value in own.items() if value is None and not pod]
    return f"pod or {_who(silent)} must set securityContext.runAsNonRoot=true" if silent else ""


def _user_zero(spec: Object) -> str:
    pod = dig(spec, "securityContext", "runAsUser") == 0
    names = [n for n, c in _containers(spec) if c.get("runAsUser") == 0]
    return f"{_setters(pod, names)} must not set runAsUser=0" if pod or names else ""


def _seccomp_restricted(spec: Object) -> str:
    if refused := _seccomp_baseline(spec):
        return refused
    if dig(spec, "securityContext", "seccompProfile", "type"):
        return ""
    silent = [n for n, c in _containers(spec) if not dig(c, "seccompProfile", "type")]
    if not silent:
        return ""
    wanted = " or ".join(go_quote(t) for t in _SECCOMP)
    return f"pod or {_who(silent)} must set securityContext.seccompProfile.type to {wanted}"


_Check = tuple[str, Callable[[Object], str]]
# In the order of Kubernetes' check ids.
_BASELINE: dict[str, _Check] = {
    "appArmorProfile": ("forbidden AppArmor profile", _app_armor),
    "capabilities": ("non-default capabilities", _capabilities_baseline),
    "hostNamespaces": ("host namespaces", _host_namespaces),
    "hostPathVolumes": ("hostPath volumes", _host_paths),
    "hostPorts": ("hostPort", _host_ports),
    "hostProbesAndHostLifecycle": ("probe or lifecycle host", _probe_hosts),
    "privileged": ("privileged", _privileged),
    "procMount": ("procMount", _proc_mount),
    "seLinuxOptions": ("seLinuxOptions", _selinux),
    "seccompProfile": ("seccompProfile", _seccomp_baseline),
    "sysctls": ("forbidden sysctls", _sysctls),
    "windowsHostProcess": ("hostProcess", _host_process),
}
_REPLACED = ("capabilities", "hostPathVolumes", "seccompProfile")
_RESTRICTED: tuple[_Check, ...] = (
    ("allowPrivilegeEscalation != false", _privilege_escalation),
    ("unrestricted capabilities", _capabilities_restricted),
    ("restricted volume types", _volume_types),
    ("runAsNonRoot != true", _non_root),
    ("runAsUser=0", _user_zero),
    ("seccompProfile", _seccomp_restricted),
)

"""A few pods on this machine: namespaces, links, iptables rules, a CA, sidecars, and applications.

Each pod is joined to a `node` namespace by a point-to-point link with host routes, as on a cluster without
a bridge. The node translates Service addresses, for pods outside the mesh: a sidecar does that by itself.
"""

from __future__ import annotations

import http.client
import importlib.util
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from socket import socket
from typing import Literal

import msgspec

from examples.two_pods import netns
from examples.two_pods.netns import SceneError, run, wait_for
from injector.netinit.plan import NEVER_INBOUND
from mesh_api.sidecar import (
    Destination,
    Endpoint,
    Inbound,
    Protocol,
    Snapshot,
    TlsMode,
    Workload,
    encode_snapshot,
)
from mesh_api.sidecar import Pod as PodEntry
from mesh_api.traffic import Route, Settings, Subset, Timeouts, WeightedTarget

Family = Literal[4, 6]
SIDECAR_UID = 1337
APP_UID = 65534
TRUST_DOMAIN = "cluster.local"
NAMESPACE = "shop"
ROOT = Path(__file__).resolve().parents[2]
_APPS = Path(__file__).with_name("apps")
_OURS = ("mesh_api", "mesh_ops", "mesh_proxy", "certs")
_THEIRS = (
    *("trio", "attr", "attrs", "idna", "outcome", "sniffio", "sortedcontainers"),
    *("msgspec", "h11", "cryptography", "_cffi_backend"),
)
_scenes = itertools.count()


@dataclass(frozen=True)
class Reply:
    """An HTTP response, read to its end."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> str:
        """What the mesh says of a response that it made."""
        return self.headers.get("x-triomesh-error", "")


class Http(http.client.HTTPConnection):
    """A client inside a pod that keeps its connection; `dialled` counts how many it has needed."""

    def __init__(self, pod: Pod, ip: str, port: int, timeout: float = 10.0) -> None:
        super().__init__(ip, port, timeout=timeout)
        self.dialled = 0
        self._at = (pod, ip, port, timeout)

    def connect(self) -> None:
        """Dial from the pod's namespace."""
        pod, ip, port, timeout = self._at
        self.sock = pod.connect(ip, port, timeout)
        self.dialled += 1

    def fetch(
        self, path: str = "/", body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> Reply:
        """One request and its whole response. Raises OSError or HTTPException."""
        self.request("POST" if body is not None else "GET", path, body, headers or {})
        response = self.getresponse()
        data = response.read()
        return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, data)


@dataclass(eq=False)
class Pod:
    """One pod; made by the scene."""

    name: str
    meshed: bool = True
    labels: dict[str, str] = field(default_factory=dict)
    inbound: Inbound = field(default_factory=Inbound)
    netns: str = ""
    addresses: tuple[str, ...] = ()
    config: Path = Path()
    log: Path = Path()
    sidecar: subprocess.Popen[bytes] | None = None
    apps: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def ip(self) -> str:
        """The first address."""
        return self.addresses[0]

    @property
    def identity(self) -> str:
        """The SPIFFE id of its ServiceAccount, which has the pod's name."""
        return f"spiffe://{TRUST_DOMAIN}/ns/{NAMESPACE}/sa/{self.name}"

    @property
    def anywhere(self) -> str:
        """The address to listen on for every family that the pod has."""
        return "::" if any(":" in ip for ip in self.addresses) else "0.0.0.0"

    @property
    def link(self) -> str:
        """The node's end of the pod's link."""
        return f"to-{self.name}"[:15]

    def connect(self, ip: str, port: int, timeout: float = 10.0) -> socket:
        """A TCP connection of an application in this pod. Raises OSError."""
        return netns.connect(self.netns, ip, port, timeout)

    def listen(self, port: int, ip: str = "") -> socket:
        """A listening socket of an application in this pod."""
        return netns.listen(self.netns, ip or self.anywhere, port)

    def get(
        self, ip: str, port: int, path: str = "/", *, timeout: float = 10.0, body: bytes | None = None
    ) -> Reply:
        """One request on a connection of its own. Raises OSError or HTTPException."""
        client = Http(self, ip, port, timeout)
        try:
            return client.fetch(path, body, {"connection": "close"})
        finally:
            client.close()

    def admin(self, path: str) -> Reply:
        """A page of the sidecar's admin port, which is on loopback only."""
        return self.get("127.0.0.1", 15000, path)

    def metrics(self) -> str:
        """The sidecar's metrics."""
        return self.get("127.0.0.1", 15020, "/metrics").body.decode()

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric over every series that carries `labels`."""
        total = 0.0
        for line in self.metrics().splitlines():
            match = re.fullmatch(rf"{name}(?:\{{(.*)\}})? (\S+)", line)
            if match and labels.items() <= dict(re.findall(r'(\w+)="([^"]*)"', match[1] or "")).items():
                total += float(match[2])
        return total

    def log_lines(self) -> list[dict[str, object]]:
        """What the sidecar has logged so far."""
        lines = self.log.read_text(errors="replace").splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def command(self, *argv: str, uid: int = APP_UID) -> list[str]:
        """The command line that runs `argv` in this pod as another user, without any privilege."""
        drop = ["--reuid", str(uid), "--regid", str(uid), "--clear-groups", "--inh-caps=-all"]
        drop += ["--bounding-set=-all", "--no-new-privs", "--pdeathsig", "KILL"]
        return ["ip", "netns", "exec", self.netns, "setpriv", *drop, "--", *argv]

    def run(self, *argv: str) -> str:
        """Run a program in this pod to its end; what it said."""
        done = subprocess.run(self.command(*argv), capture_output=True, text=True, timeout=20)
        return (done.stdout or done.stderr).strip()


@dataclass(eq=False)
class Service:
    """One port of a Service; made by the scene."""

    name: str
    port: int
    target_port: int
    pods: tuple[Pod, ...]
    addresses: tuple[str, ...] = ()
    protocol: Protocol = Protocol.AUTO
    subsets: dict[str, Subset] = field(default_factory=dict)
    split: tuple[WeightedTarget, ...] = ()
    timeouts: Timeouts = field(default_factory=Timeouts)

    @property
    def ip(self) -> str:
        """The first address."""
        return self.addresses[0]

    def destination(self) -> Destination:
        """What a sidecar knows of it."""
        return Destination(
            name=self.name,
            namespace=NAMESPACE,
            port=self.port,
            addresses=self.addresses,
            protocol=self.protocol,
            endpoints=tuple(
                Endpoint(
                    address=pod.ip,
                    port=self.target_port,
                    tls=TlsMode.MESH if pod.meshed else TlsMode.NONE,
                    identity=pod.identity if pod.meshed else "",
                    workload=pod.name,
                    labels=pod.labels,
                )
                for pod in self.pods
            ),
            subsets=self.subsets,
            routes=(Route(to=self.split),) if self.split else (),
            settings=Settings(timeouts=self.timeouts),
        )


class Scene:
    """Sets everything up on entry and removes it on exit, also after a failure."""

    def __init__(
        self,
        pods: Sequence[Pod],
        families: tuple[Family, ...] = (4,),
        *,
        backend: Literal["auto", "nft", "legacy"] = "auto",
        leaf_lifetime: str = "24h",
        drain_s: float = 5.0,
        say: Callable[[str], None] = lambda _text: None,
    ) -> None:
        self.name = f"{netns.PREFIX}{os.getpid()}-{next(_scenes)}"
        self.node = f"{self.name}-node"
        self.families = families
        self.backend = backend
        self.leaf_lifetime = leaf_lifetime
        self.drain_s = drain_s
        self.pods = {pod.name: pod for pod in pods}
        self.services: dict[tuple[str, int], Service] = {}
        self.netinit_said: dict[str, str] = {}
        self.dir = Path()
        self._say = say
        self._ca: subprocess.Popen[bytes] | None = None
        for number, pod in enumerate(pods):
            pod.netns = f"{self.name}-{pod.name}"
            pod.addresses = tuple(
                f"10.44.0.{10 + number}" if f == 4 else f"fd44::{10 + number:x}" for f in families
            )

    def __enter__(self) -> Scene:
        _check_machine()
        try:
            self._set_up()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getitem__(self, name: str) -> Pod:
        return self.pods[name]

    @property
    def meshed(self) -> list[Pod]:
        """The pods that have a sidecar."""
        return [pod for pod in self.pods.values() if pod.meshed]

    # -- set up and tear down -----------------------------------------------------------------------------

    def _set_up(self) -> None:
        self.dir = Path(tempfile.mkdtemp(prefix=f"{self.name}-", dir=netns.TEMP))
        self.dir.chmod(0o755)
        self._stage()
        self._make_network()
        if self.meshed:
            self._start_ca()

    def start(self) -> None:
        """Put the rules, configurations and sidecars of every meshed pod in place and wait until ready."""
        pods = self.meshed
        jobs = {pod.name: self._netinit(pod) for pod in pods}
        for name, job in jobs.items():
            said, _ = job.communicate(timeout=60)
            self.netinit_said[name] = said
            if job.returncode:
                raise SceneError(f"netinit in pod {name}: {' '.join(said.split())}")
        self._write_hosts()
        for pod in pods:
            self._write_config(pod)
            self.start_sidecar(pod, wait=False)
        for pod in pods:
            self.wait_ready(pod)

    def close(self) -> None:
        """Remove everything; calling it again does nothing."""
        with _signals_held():
            processes = [p for pod in self.pods.values() for p in (pod.sidecar, *pod.apps) if p]
            processes += [self._ca] if self._ca else []
            netns.kill([process.pid for process in processes if process.poll() is None])
            for process in processes:
                process.wait()
            for name in (*(pod.netns for pod in self.pods.values()), self.node):
                with suppress(SceneError):
                    netns.remove(name)
            with suppress(OSError):
                netns.HOSTS.rmdir()
            if self.dir != Path():
                shutil.rmtree(self.dir, ignore_errors=True)
            self.dir = Path()

    def _stage(self) -> None:
        """Copy what the sidecars import to where their user can read it: a clone under root's home is not."""
        for part in ("lib", "apps", "config", "ca", "run", "log"):
            (self.dir / part).mkdir(mode=0o700 if part == "ca" else 0o755)
        for package in _OURS:
            shutil.copytree(ROOT / package, self.dir / "lib" / package)
        for name in _THEIRS:
            spec = importlib.util.find_spec(name)
            if spec is None or spec.origin is None:
                raise SceneError(f"the Python package {name} is not installed")
            origin = Path(spec.origin)
            if origin.name == "__init__.py":
                shutil.copytree(origin.parent, self.dir / "lib" / name)
            else:
                shutil.copy2(origin, self.dir / "lib")
        for file in _APPS.glob("*.py"):
            shutil.copy2(file, self.dir / "apps")
        subprocess.run(["chmod", "-R", "a+rX", self.dir / "lib", self.dir / "apps"], check=True)

    @cached_property
    def python(self) -> str:
        """An interpreter that the sidecar's user can run and that can load our extension modules."""
        name = f"python3.{sys.version_info.minor}"
        for path in dict.fromkeys(
            (os.path.realpath(sys.executable), f"/usr/bin/{name}", f"/usr/local/bin/{name}")
        ):
            ids = [f"--reuid={SIDECAR_UID}", f"--regid={SIDECAR_UID}", "--clear-groups"]
            test = "import cryptography.x509, msgspec, ssl, trio"
            try:
                done = subprocess.run(
                    ["setpriv", *ids, path, "-c", test], env=self._environment(), cwd="/", capture_output=True
                )
            except OSError:
                continue
            if done.returncode == 0:
                return path
        raise SceneError(f"no {name} that user {SIDECAR_UID} can run; install it system-wide")

    def _environment(self) -> dict[str, str]:
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return {"PATH": path, "PYTHONPATH": str(self.dir / "lib"), "PYTHONDONTWRITEBYTECODE": "1"}

    def _make_network(self) -> None:
        self._make_namespace(self.node)
        node = ("ip", "-n", self.node)
        run(*node, "addr", "add", "10.44.0.1/32", "dev", "lo")
        _sysctl(self.node, "net.ipv4.ip_forward=1", "-e", "net.ipv6.conf.all.forwarding=1")
        for pod in self.pods.values():
            self._make_namespace(pod.netns)
            inside = ("ip", "-n", pod.netns)
            run(*node, "link", "add", pod.link, "type", "veth", "peer", "name", "eth0", "netns", pod.netns)
            run(*node, "link", "set", pod.link, "up")
            run(*inside, "link", "set", "eth0", "up")
            for ip in pod.addresses:
                if ":" in ip:
                    run(*node, "addr", "add", "fe80::1/64", "dev", pod.link, "nodad")
                    run(*node, "route", "add", f"{ip}/128", "dev", pod.link)
                    run(*inside, "addr", "add", f"{ip}/128", "dev", "eth0", "nodad")
                    run(*inside, "route", "add", "default", "via", "fe80::1", "dev", "eth0")
                else:
                    run(*node, "route", "add", f"{ip}/32", "dev", pod.link)
                    run(*inside, "addr", "add", f"{ip}/32", "dev", "eth0")
                    run(*inside, "route", "add", "10.44.0.1", "dev", "eth0", "scope", "link")
                    run(*inside, "route", "add", "default", "via", "10.44.0.1", "dev", "eth0")

    def _make_namespace(self, name: str) -> None:
        run("ip", "netns", "add", name)
        off = "0" if 6 in self.families else "1"
        settings = [f"net.ipv6.conf.{scope}.disable_ipv6={off}" for scope in ("all", "default")]
        _sysctl(name, "-e", *settings, "net.ipv6.conf.default.accept_dad=0", "net.ipv6.conf.all.accept_dad=0")
        run("ip", "-n", name, "link", "set", "lo", "up")

    def _write_hosts(self) -> None:
        lines = ["127.0.0.1 localhost", *(["::1 localhost"] if 6 in self.families else [])]
        lines += [f"{ip} {name}" for (name, _), service in self.services.items() for ip in service.addresses]
        for pod in self.pods.values():
            place = netns.HOSTS / pod.netns
            place.mkdir(parents=True, exist_ok=True)
            (place / "hosts").write_text("\n".join(dict.fromkeys(lines)) + "\n")
            # No name server: a look-up that the hosts file does not answer fails at once.
            (place / "resolv.conf").write_text("options timeout:1 attempts:1\n")

    # -- the mesh -----------------------------------------------------------------------------------------

    def _start_ca(self) -> None:
        place = self.dir / "ca"
        base = [sys.executable, "-m", "certs"]
        run(*base, "create", "--dir", str(place / "state"), "--trust-domain", TRUST_DOMAIN, cwd=ROOT)
        serve = [*base, "serve", "--dir", str(place / "state"), "--lifetime", self.leaf_lifetime]
        serve += ["--socket-mode", "0600", "--socket-owner", f"{SIDECAR_UID}:{SIDECAR_UID}"]
        for pod in self.pods.values():
            serve += ["--listen", f"{self.ca_socket(pod)}={pod.identity}"]
        log = self.dir / "log" / "ca.log"
        with log.open("wb") as out:
            self._ca = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *serve],
                cwd=ROOT,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        self._until(self._ca, lambda: "ca.ready" in log.read_text(), "the CA", log)

    def ca_socket(self, pod: Pod) -> Path:
        """The socket on which the CA answers this pod."""
        return self.dir / "run" / f"{pod.name}.sock"

    def _netinit(self, pod: Pod) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "injector.netinit", "apply", "--netns", netns.path_of(pod.netns)]
        return subprocess.Popen(
            [*command, "--backend", self.backend],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def service(
        self,
        name: str,
        port: int,
        pods: Sequence[Pod],
        target_port: int,
        protocol: Protocol = Protocol.AUTO,
        timeouts: Timeouts | None = None,
    ) -> Service:
        """Add one port of a Service, with a virtual address in each family; ports of a name share it."""
        names = list(dict.fromkeys([*(known for known, _ in self.services), name]))
        number = names.index(name) + 1
        addresses = tuple(f"10.45.0.{number}" if f == 4 else f"fd45::{number:x}" for f in self.families)
        service = Service(name, port, target_port, tuple(pods), addresses, protocol)
        service.timeouts = timeouts or Timeouts()
        self.services[name, port] = service
        for family, ip in zip(self.families, addresses, strict=True):
            target = pods[0].addresses[self.families.index(family)]
            program, to = ("iptables", target) if family == 4 else ("ip6tables", f"[{target}]")
            rule = ["-d", ip, "-p", "tcp", "--dport", str(port), "-j", "DNAT", "--to", f"{to}:{target_port}"]
            run("ip", "netns", "exec", self.node, program, "-w", "-t", "nat", "-A", "PREROUTING", *rule)
        return service

    def snapshot(self, pod: Pod) -> Snapshot:
        """The whole configuration of one sidecar."""
        return Snapshot(
            workload=Workload(
                name=pod.name, namespace=NAMESPACE, service_account=pod.name, addresses=pod.addresses
            ),
            trust_domain=TRUST_DOMAIN,
            inbound=pod.inbound,
            destinations=tuple(service.destination() for service in self.services.values()),
            pods=tuple(
                PodEntry(
                    name=other.name,
                    namespace=NAMESPACE,
                    addresses=other.addresses,
                    identity=other.identity,
                    workload=other.name,
                    plaintext_ports=NEVER_INBOUND,
                )
                for other in self.meshed
            ),
            access_log=True,
        )

    def _write_config(self, pod: Pod) -> bool:
        pod.config = self.dir / "config" / f"{pod.name}.json"
        data = encode_snapshot(self.snapshot(pod))
        if pod.config.exists() and pod.config.read_bytes() == data:
            return False
        fresh = pod.config.with_suffix(".new")
        fresh.write_bytes(data)
        fresh.chmod(0o644)
        fresh.replace(pod.config)
        return True

    def apply(self, *pods: Pod) -> None:
        """Write the configurations anew, of all pods unless named, and wait until they are in force."""
        waiting = []
        for pod in pods or self.meshed:
            before = _generation(pod)
            if self._write_config(pod):
                waiting.append((pod, before))
        for pod, before in waiting:

            def changed(pod: Pod = pod, before: int = before) -> bool:
                return _generation(pod) > before

            wait_for(changed, f"the new configuration in force in pod {pod.name}", 5)

    def start_sidecar(self, pod: Pod, *, uid: int = SIDECAR_UID, wait: bool = True) -> None:
        """Start the sidecar of a pod."""
        pod.log = self.dir / "log" / f"{pod.name}.log"
        environment = self._environment() | {
            "TRIOMESH_CONFIG_FILE": str(pod.config),
            "TRIOMESH_CA_SOCKET": str(self.ca_socket(pod)),
            "TRIOMESH_TRUST_DOMAIN": TRUST_DOMAIN,
            "TRIOMESH_POD_IPS": ",".join(pod.addresses),
            "TRIOMESH_DRAIN_SECONDS": str(self.drain_s),
        }
        with pod.log.open("ab") as out:
            pod.sidecar = subprocess.Popen(
                pod.command(self.python, "-m", "mesh_proxy", uid=uid),
                env=environment,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        if wait:
            self.wait_ready(pod)

    def wait_ready(self, pod: Pod) -> None:
        """Return once the sidecar of a pod says that it is ready."""
        assert pod.sidecar is not None
        self._until(pod.sidecar, lambda: _ready(pod), f"the sidecar of pod {pod.name}", pod.log)

    def application(self, pod: Pod, program: str, port: int) -> subprocess.Popen[bytes]:
        """Start one of the applications in a pod and wait until it listens."""
        file = self.dir / "apps" / f"{program}.py"
        log = self.dir / "log" / f"{pod.name}-{program}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                pod.command(self.python, str(file), pod.anywhere, str(port), pod.name),
                env={"PATH": self._environment()["PATH"]},
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        pod.apps.append(process)
        self._until(process, lambda: _accepts(pod, port), f"{program} in pod {pod.name}", log)
        return process

    def client_program(self, url: str) -> list[str]:
        """The command line of an unmodified HTTP client: curl where there is one."""
        if shutil.which("curl"):
            return ["curl", "-sS", "--max-time", "10", url]
        return [self.python, str(self.dir / "apps" / "fetch.py"), url]

    def _until(
        self, process: subprocess.Popen[bytes], probe: Callable[[], bool], what: str, log: Path
    ) -> None:
        def ready_or_gone() -> bool:
            return probe() or process.poll() is not None

        try:
            wait_for(ready_or_gone, what, 20)
        except TimeoutError:
            pass
        if process.poll() is not None or not probe():
            last = log.read_text(errors="replace").strip().rpartition("\n")[2]
            raise SceneError(f"{what} did not start: {last or 'it said nothing'}")


def _sysctl(name: str, *settings: str) -> None:
    run("ip", "netns", "exec", name, "sysctl", "-q", "-w", *settings)


def _accepts(pod: Pod, port: int) -> bool:
    try:
        pod.connect("127.0.0.1", port, 1).close()
    except OSError:
        return False
    return True


def _ready(pod: Pod) -> bool:
    try:
        return pod.get("127.0.0.1", 15021, "/healthz/ready", timeout=1).status == 200
    except (OSError, http.client.HTTPException):
        return False


def _generation(pod: Pod) -> int:
    info = msgspec.json.decode(pod.admin("/server_info").body, type=dict[str, object])
    return int(str(info["config_generation"]))


def _check_machine() -> None:
    if os.geteuid() != 0:
        raise SceneError("this needs root, to make network namespaces")
    for program in ("ip", "iptables", "ip6tables", "setpriv", "sysctl"):
        if shutil.which(program) is None:
            raise SceneError(
                f"{program} is not installed (Debian packages: iproute2 iptables util-linux procps)"
            )


class _signals_held:
    """Ctrl-C and SIGTERM wait until the block is over."""

    def __enter__(self) -> None:
        self._before = signal.pthread_sigmask(
            signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        )

    def __exit__(self, *_: object) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._before)

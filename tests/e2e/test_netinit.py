"""netinit in real network namespaces, with both back ends and all address families."""

import contextlib
import itertools
import json
import os
import re
import select
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from injector.netinit import apply as netinit
from injector.netinit import host
from injector.netinit.plan import FAMILIES, OptionError, Options, parse_cidrs, parse_ports

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.skipif(
        any(shutil.which(name) is None for name in ("ip", "iptables-nft", "iptables-legacy", "setpriv")),
        reason="needs iproute2, util-linux and iptables with both back ends",
    ),
]

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "netinit"
PYTHON = "/usr/bin/python3"
POD4, POD6 = "10.77.0.2", "fd77::2"
OUT4, OUT6 = "10.77.0.1", "fd77::1"
_numbers = itertools.count()


def sh(*argv: str, **more: object) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=20, **more)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{argv}: {done.stderr}"
    return str(done.stdout)


class Pod:
    """A namespace with eth0 and routes, and another namespace that plays the network."""

    def __init__(self, families: tuple[int, ...] = (4, 6)) -> None:
        self.families = families
        self.name, self.outside = (f"tm-test-{os.getpid()}-{next(_numbers)}" for _ in range(2))
        self.path = f"/run/netns/{self.name}"
        self.env = dict(os.environ)
        self._children: list[subprocess.Popen[str]] = []

    def __enter__(self) -> "Pod":
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for child in self._children:
            if child.returncode is None:
                child.kill()
                child.communicate()
        for name in (self.name, self.outside):
            if Path(f"/run/netns/{name}").exists():
                sh("ip", "netns", "del", name)

    def _build(self) -> None:
        sh("ip", "netns", "add", self.outside)
        sh("ip", "netns", "add", self.name)
        # Names inside fresh namespaces only: nothing appears in the host's.
        sh(
            "ip",
            "-n",
            self.name,
            "link",
            "add",
            "eth0",
            "type",
            "veth",
            "peer",
            "name",
            "out0",
            "netns",
            self.outside,
        )
        for name, link, v4, v6 in ((self.name, "eth0", POD4, POD6), (self.outside, "out0", OUT4, OUT6)):
            if 6 not in self.families:
                sh(
                    "ip",
                    "netns",
                    "exec",
                    name,
                    "sh",
                    "-c",
                    "echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6",
                )
            sh("ip", "-n", name, "link", "set", "lo", "up")
            sh("ip", "-n", name, "link", "set", link, "up")
            if 4 in self.families:
                sh("ip", "-n", name, "addr", "add", f"{v4}/24", "dev", link)
            if 6 in self.families:
                sh("ip", "-n", name, "addr", "add", f"{v6}/64", "dev", link, "nodad")
        if 4 in self.families:
            sh("ip", "-n", self.name, "route", "add", "default", "via", OUT4)
        if 6 in self.families:
            sh("ip", "-n", self.name, "-6", "route", "add", "default", "via", OUT6)

    def netinit(self, *arguments: str, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["ip", "netns", "exec", self.name, *prefix, sys.executable, "-m", "injector.netinit", *arguments],
            cwd=ROOT,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=30,
        )

    def save(self, backend: str) -> list[str]:
        """Everything that both families hold; tables without rules and chains are the same as none."""
        return [
            f"{program} {line}"
            for program in ("iptables", "ip6tables")
            for line in uncounted(sh("ip", "netns", "exec", self.name, f"{program}-{backend}-save"))
            if not re.match(r"COMMIT|\*|:[A-Z]+ ACCEPT", line)
        ]

    def lo6(self) -> bool:
        return "::6/128" in sh("ip", "-n", self.name, "-6", "addr", "show", "dev", "lo")

    def start(self, code: str, *arguments: str, uid: int = 0, outside: bool = False) -> subprocess.Popen[str]:
        child = subprocess.Popen(
            [
                *("ip", "netns", "exec", self.outside if outside else self.name),
                *("setpriv", "--reuid", str(uid), "--regid", str(uid), "--clear-groups"),
                *(PYTHON, "-c", code, *arguments),
            ],
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._children.append(child)
        return child

    def serve(self, *listeners: str, uid: int = 0, outside: bool = False) -> None:
        child = self.start(SERVER, *listeners, uid=uid, outside=outside)
        assert child.stdout is not None
        ready, _, _ = select.select([child.stdout], [], [], 10)
        assert ready, "the server did not start"
        assert child.stdout.readline() == "ready\n"

    def dial(
        self, *calls: tuple[str, int] | tuple[str, int, str], uid: int = 0, outside: bool = False
    ) -> list[str]:
        out, _ = self.start(CLIENT, json.dumps(calls), uid=uid, outside=outside).communicate(timeout=20)
        return list(json.loads(out))


# Answers each connection with "<name> <original address>:<port>"; no rule, no original address.
SERVER = """
import socket, select, sys
names = {}
for item in sys.argv[1:]:
    name, address, port = item.split(",")
    six = ":" in address
    s = socket.socket(socket.AF_INET6 if six else socket.AF_INET)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if six:
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    s.bind((address, int(port)))
    s.listen(16)
    names[s] = name
print("ready", flush=True)
while True:
    for s in select.select(list(names), [], [])[0]:
        c, peer = s.accept()
        try:
            if s.family == socket.AF_INET:
                raw = c.getsockopt(0, 80, 16)
                original = socket.inet_ntop(s.family, raw[4:8])
            else:
                raw = c.getsockopt(41, 80, 28)
                original = socket.inet_ntop(s.family, raw[8:24])
            port = int.from_bytes(raw[2:4], "big")
        except OSError:
            original, port = c.getsockname()[:2]
        c.sendall(f"{names[s]} {original} {port} from {peer[0]}".encode())
        c.close()
"""

CLIENT = """
import json, socket, sys
out = []
for host, port, *source in json.loads(sys.argv[1]):
    s = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    s.settimeout(1)
    try:
        if source:
            s.bind((source[0], 0))
        s.connect((host, port))
        got = b""
        while data := s.recv(200):
            got += data
        out.append(got.decode())
    except OSError as e:
        out.append(type(e).__name__)
    s.close()
print(json.dumps(out))
"""


@pytest.fixture
def make_pod() -> Iterator[Callable[..., Pod]]:
    with contextlib.ExitStack() as stack:
        yield lambda families=FAMILIES: stack.enter_context(Pod(families))


FOREIGN = """*nat
:OTHER - [0:0]
-A PREROUTING -p tcp -m tcp --dport 9 -m comment --comment "not ours" -j OTHER
-A OUTPUT -d 10.3.0.0/16 -j OTHER
-A OTHER -j RETURN
COMMIT
*filter
-A INPUT -p udp -m udp --dport 9 -j ACCEPT
COMMIT
"""


@pytest.mark.parametrize("families", [(4,), (6,), (4, 6)], ids=["v4", "v6", "dual"])
@pytest.mark.parametrize("backend", host.BACKENDS)
def test_apply_again_change_and_clean_up(
    make_pod: Callable[..., Pod], backend: str, families: tuple[int, ...]
) -> None:
    pod = make_pod(families)
    sh("ip", "netns", "exec", pod.name, f"iptables-{backend}-restore", "--noflush", input=FOREIGN)
    before = pod.save(backend)
    assert any("not ours" in line for line in before)

    dry = pod.netinit("--dry-run")
    assert dry.returncode == 0
    assert ("# IPv6\n" in dry.stdout) == (6 in families)
    assert pod.save(backend) == before
    assert not pod.lo6()

    # The back end is the one that holds the foreign rules.
    first = pod.netinit()
    assert (first.returncode, first.stderr) == (0, "")
    assert f"rules applied with iptables-{backend}, " in first.stdout
    for family in families:
        for side in ("outbound", "inbound"):
            assert f"probe: IPv{family} {side} works" in first.stdout
    assert pod.lo6() == (6 in families)
    applied = pod.save(backend)
    assert all(line in applied for line in before)
    raw = sh("ip", "netns", "exec", pod.name, f"iptables-{backend}-save")

    again = pod.netinit()
    assert again.returncode == 0
    assert "nothing to do" in again.stdout
    assert uncounted(sh("ip", "netns", "exec", pod.name, f"iptables-{backend}-save")) == uncounted(raw)

    changed = pod.netinit("--exclude-outbound-ports", "3306", "--keep-invalid", "--no-probe")
    assert "rules applied" in changed.stdout
    now = pod.save(backend)
    assert any("exclude-port-3306" in line for line in now)
    assert not any("TRIOMESH_DROP" in line for line in now)
    assert sum("-A OUTPUT -p tcp" in line for line in now if line.startswith("iptables ")) == 1

    other = next(item for item in host.BACKENDS if item != backend)
    moved = pod.netinit("--backend", other, "--no-probe")
    assert moved.returncode == 0
    assert pod.save(backend) == before
    assert any("TRIOMESH_OUTPUT" in line for line in pod.save(other))

    gone = pod.netinit("--cleanup")
    assert gone.returncode == 0
    assert (pod.save(backend), pod.save(other)) == (before, [])
    assert not pod.lo6()
    assert "nothing to remove" in pod.netinit("--cleanup").stdout


def uncounted(text: str) -> list[str]:
    return [re.sub(r"\[[0-9:]+\]", "", line) for line in text.splitlines() if not line.startswith("#")]


@pytest.mark.parametrize("backend", host.BACKENDS)
def test_ipv6_that_fails(make_pod: Callable[..., Pod], backend: str, tmp_path: Path) -> None:
    fake = tmp_path / f"ip6tables-{backend}-restore"
    fake.write_text("#!/bin/sh\necho 'no table for you' >&2\necho 'line two' >&2\nexit 3\n")
    fake.chmod(0o755)
    pod = make_pod()
    before = pod.save(backend)
    real = pod.env["PATH"]

    pod.env["PATH"] = f"{tmp_path}:{real}"
    failed = pod.netinit("--backend", backend)
    assert failed.returncode == 1
    assert failed.stderr.startswith(
        f"triomesh-netinit: error: IPv6: ip6tables-{backend}-restore failed with status 3:"
        " no table for you; line two"
    )
    assert "the IPv4 rules are as before" in failed.stderr
    assert failed.stderr.count("\n") == 1
    assert pod.save(backend) == before
    assert not pod.lo6()

    # Rules of an earlier run come back too.
    pod.env["PATH"] = real
    assert pod.netinit("--backend", backend, "--no-probe").returncode == 0
    applied = pod.save(backend)
    pod.env["PATH"] = f"{tmp_path}:{real}"
    changed = pod.netinit("--backend", backend, "--exclude-outbound-ports", "25", "--keep-invalid")
    assert changed.returncode == 1
    assert sorted(pod.save(backend)) == sorted(applied)
    assert pod.lo6()

    # Without a global IPv6 address it is a warning.
    sh("ip", "-n", pod.name, "-6", "addr", "flush", "dev", "eth0", "scope", "global")
    warned = pod.netinit("--backend", backend, "--exclude-outbound-ports", "25")
    assert warned.returncode == 0
    assert "warning: IPv6 is not captured" in warned.stderr
    assert any("exclude-port-25" in line for line in pod.save(backend) if line.startswith("iptables "))
    assert pod.netinit("--backend", backend, "--exclude-outbound-ports", "26", "--ipv6", "on").returncode == 1


def test_a_failing_probe_is_reported(make_pod: Callable[..., Pod]) -> None:
    pod = make_pod((4,))
    sh(
        "ip",
        "netns",
        "exec",
        pod.name,
        "iptables-nft",
        "-t",
        "nat",
        "-I",
        "OUTPUT",
        "-p",
        "tcp",
        "-j",
        "ACCEPT",
    )
    sh("ip", "netns", "exec", pod.name, "iptables-nft", "-A", "OUTPUT", "-p", "tcp", "-j", "REJECT")
    failed = pod.netinit()
    assert failed.returncode == 1
    assert "did not arrive at port 15001" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_what_is_missing_is_status_2(make_pod: Callable[..., Pod], tmp_path: Path) -> None:
    pod = make_pod((4,))

    def refused(message: str, *arguments: str, prefix: tuple[str, ...] = ()) -> None:
        done = pod.netinit(*arguments, prefix=prefix)
        assert done.returncode == 2
        assert message in done.stderr
        assert done.stderr.count("\n") == 1

    dropped = ("setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin")
    refused("CAP_NET_ADMIN missing (running as uid 0)", prefix=dropped)
    refused("IPv6 was asked for", "--ipv6", "on")
    refused("cannot enter network namespace", "--netns", "/dev/null")

    pod.env["PATH"] = str(tmp_path)
    ip = str(shutil.which("ip", path=os.environ["PATH"]))
    for arguments in ((), ("--cleanup",), ("--backend", "legacy")):
        done = subprocess.run(
            [ip, "netns", "exec", pod.name, sys.executable, "-m", "injector.netinit", *arguments],
            cwd=ROOT,
            env=pod.env,
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert done.returncode == 2
        assert "iptables" in done.stderr
        assert done.stderr.count("\n") == 1


def test_another_uid_without_capabilities_is_status_2(make_pod: Callable[..., Pod], tmp_path: Path) -> None:
    """The checkout may be out of reach of that uid: it gets the modules in a place of its own."""
    pod = make_pod((4,))
    import click

    place = Path(sh("mktemp", "-d", "/tmp/tm-test-XXXXXXXX").strip())
    try:
        shutil.copytree(ROOT / "injector", place / "injector", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(Path(click.__file__).parent, place / "click")
        place.chmod(0o755)
        done = subprocess.run(
            [
                *("ip", "netns", "exec", pod.name),
                *("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"),
                *(PYTHON, "-B", "-m", "injector.netinit"),
            ],
            cwd=place,
            capture_output=True,
            text=True,
            timeout=30,
        )
    finally:
        shutil.rmtree(place)
    assert done.returncode == 2
    assert done.stderr.startswith(
        "triomesh-netinit: error: CAP_NET_ADMIN and CAP_NET_RAW missing (running as uid 65534)"
    )
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("backend", host.BACKENDS)
def test_iptables_accepts_every_golden_file(make_pod: Callable[..., Pod], backend: str) -> None:
    pod = make_pod()
    for path in sorted(GOLDEN.iterdir()):
        program = "iptables" if path.suffixes[-2] == ".v4" else "ip6tables"
        sh("ip", "netns", "exec", pod.name, f"{program}-{backend}-restore", "--test", input=path.read_text())
    assert pod.save(backend) == []


def test_every_option_survives_save(make_pod: Callable[..., Pod]) -> None:
    """What iptables-save prints must compare equal to what was asked for, else a second run is no no-op."""
    pod = make_pod()
    options = Options(
        proxy_uid=2000,
        proxy_gid=3000,
        include_inbound_ports=parse_ports("80,8000-8010", "o"),
        include_outbound_ports=parse_ports("443", "o"),
        exclude_outbound_ports=parse_ports("3306,6000-6010", "o"),
        include_cidrs=parse_cidrs("10.0.0.0/8,fd00::/8,::ffff:10.0.0.0/104", "o"),
        exclude_cidrs=parse_cidrs("10.1.0.0/16,1.2.3.4,fd00:1::/32,::1.2.3.4,64:ff9b::/96", "o"),
        exclude_interfaces=("net1", "a.b-c"),
    )
    for backend in host.BACKENDS:
        assert netinit.apply(options, backend=backend, check=False, netns=pod.path).changed
        again = netinit.apply(options, backend=backend, check=False, netns=pod.path)
        assert (again.changed, again.families, again.backend) == (False, (4, 6), backend)
    assert netinit.cleanup(netns=pod.path)
    assert not netinit.cleanup(netns=pod.path)


def test_the_function_leaves_the_caller_where_it_was(make_pod: Callable[..., Pod]) -> None:
    pod = make_pod()
    here = os.stat("/proc/thread-self/ns/net").st_ino
    said: list[str] = []
    netinit.apply(Options(), netns=pod.path, say=said.append)
    assert sum("works" in message for message in said) == 4
    with pytest.raises(OptionError), host.network_namespace(pod.path):
        Options(outbound_port=0)
    assert os.stat("/proc/thread-self/ns/net").st_ino == here


def test_a_running_sidecar_is_not_disturbed(make_pod: Callable[..., Pod]) -> None:
    pod = make_pod((4,))
    assert pod.netinit().returncode == 0
    pod.serve("out,127.0.0.1,15001", "in,0.0.0.0,15006", uid=1337)
    again = pod.netinit()
    assert again.returncode == 0
    assert "outbound not checked: port 15001 is in use; a sidecar seems to be running" in again.stdout
    assert "inbound not checked: port 15006 is in use" in again.stdout


@pytest.mark.parametrize("backend", host.BACKENDS)
def test_who_is_captured(make_pod: Callable[..., Pod], backend: str) -> None:
    pod = make_pod()
    assert (
        pod.netinit(
            "--backend", backend, "--exclude-outbound-ports", "3306", "--exclude-inbound-ports", "9000"
        ).returncode
        == 0
    )
    pod.serve("out,127.0.0.1,15001", "out,::1,15001", "in,0.0.0.0,15006", "in,::,15006", uid=1337)
    ports = (8080, 9000, 15020, 15021)
    pod.serve(*(f"app,{address},{port}" for address in ("0.0.0.0", "::") for port in ports))
    for far in ("192.0.2.9/32", "2001:db8::9/128"):
        sh("ip", "-n", pod.outside, "addr", "add", far, "dev", "lo", *(("nodad",) if ":" in far else ()))
    pod.serve("far,192.0.2.9,3306", "far,2001:db8::9,3306", outside=True)

    for mine, local, other, passing in (
        (POD4, "127.0.0.1", "192.0.2.9", "127.0.0.6"),
        (POD6, "::1", "2001:db8::9", "::6"),
    ):
        assert pod.dial((mine, 8080), (local, 8080), (other, 80), (other, 3306)) == [
            f"app {mine} 8080 from {mine}",
            f"app {local} 8080 from {local}",
            f"out {other} 80 from {mine}",
            f"far {other} 3306 from {mine}",
        ]
        assert pod.dial(
            (mine, 8080), (local, 8080), (mine, 8080, passing), (mine, 9000), (mine, 15021), uid=1337
        ) == [
            f"in {mine} 8080 from {mine}",
            f"app {local} 8080 from {local}",
            f"app {mine} 8080 from {passing}",
            f"app {mine} 9000 from {mine}",
            f"app {mine} 15021 from {mine}",
        ]
        remote = OUT6 if ":" in mine else OUT4
        assert pod.dial(
            (mine, 8080), (mine, 81), (mine, 9000), (mine, 15020), (mine, 15021), outside=True
        ) == [
            f"in {mine} 8080 from {remote}",
            f"in {mine} 81 from {remote}",
            *(f"app {mine} {port} from {remote}" for port in (9000, 15020, 15021)),
        ]


def test_lists_of_what_to_capture(make_pod: Callable[..., Pod]) -> None:
    pod = make_pod()
    pod.serve("out,127.0.0.1,15001", "out,::1,15001", "in,0.0.0.0,15006", "in,::,15006", uid=1337)
    pod.serve("app,0.0.0.0,8080", "app,0.0.0.0,8081")
    done = pod.netinit(
        *("--include-cidrs", "198.51.100.0/24", "--exclude-cidrs", "198.51.100.128/25"),
        *("--include-outbound-ports", "443", "--include-inbound-ports", "8081"),
    )
    assert done.returncode == 0
    inside, hole, elsewhere = "198.51.100.1", "198.51.100.129", "203.0.113.1"
    assert pod.dial((inside, 80), (elsewhere, 443), ("2001:db8::9", 80)) == [
        f"out {inside} 80 from {POD4}",
        f"out {elsewhere} 443 from {POD4}",
        f"out 2001:db8::9 80 from {POD6}",
    ]
    # The network of this pod has no such host; what is not captured gets no answer or a refusal.
    assert not any(answer.startswith("out") for answer in pod.dial((hole, 80), (elsewhere, 80)))
    assert pod.dial((POD4, 8080), (POD4, 8081), outside=True) == [
        f"app {POD4} 8080 from {OUT4}",
        f"in {POD4} 8081 from {OUT4}",
    ]


def test_an_excluded_interface(make_pod: Callable[..., Pod]) -> None:
    pod = make_pod((4,))
    pod.serve("out,127.0.0.1,15001", "in,0.0.0.0,15006", uid=1337)
    pod.serve("app,0.0.0.0,8080")
    assert pod.netinit("--exclude-interfaces", "eth0").returncode == 0
    assert pod.dial((POD4, 8080), outside=True) == [f"app {POD4} 8080 from {OUT4}"]
    assert pod.dial((OUT4, 80)) == ["ConnectionRefusedError"]


def test_nothing_is_left(make_pod: Callable[..., Pod]) -> None:
    """The fixture of every test above has ended: no namespace of this run remains."""
    names = [path.name for path in Path("/run/netns").glob(f"tm-test-{os.getpid()}-*")]
    assert names == []

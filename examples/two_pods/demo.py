"""What a mesh does for two pods, step by step, on this machine."""

from __future__ import annotations

import http.client
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from examples.two_pods.load import FreshHttp, FreshTcp, KeptHttp, Load
from examples.two_pods.netns import Capture, run, wait_for
from examples.two_pods.scene import Family, Http, Pod, Reply, Scene, Service
from mesh_api.sidecar import Inbound, MtlsMode, Protocol
from mesh_api.traffic import Subset, WeightedTarget

MARKER = "secret-marker-4711"
REQUESTS = 500
LEAF_LIFETIME = "6s"
# ServerHello's supported_versions extension with the one value TLS 1.3 (RFC 8446 4.2.1).
_TLS13 = bytes.fromhex("002b00020304")


@dataclass(frozen=True)
class Check:
    """One line of the summary."""

    what: str
    expected: str
    measured: str
    ok: bool


class Demo:
    """Runs the steps and keeps what they found."""

    def __init__(self, say: Callable[[str], None] = print) -> None:
        self._say = say
        self._start = monotonic()
        self._steps = 0
        self.checks: list[Check] = []

    def run(self) -> bool:
        """Everything, from the first namespace to the summary; whether all checks passed."""
        client, outsider = Pod("client"), Pod("outsider", meshed=False)
        v1, v2 = Pod("server-v1", labels={"version": "v1"}), Pod("server-v2", labels={"version": "v2"})
        families: tuple[Family, ...] = (4, 6) if Path("/proc/net/if_inet6").exists() else (4,)
        self._step("Three pods with a sidecar and one without, in network namespaces")
        with Scene((client, v1, v2, outsider), families, leaf_lifetime=LEAF_LIFETIME) as scene:
            web = scene.service("web", 80, (v1, v2), 8080)
            only_v1 = scene.service("web-v1", 80, (v1,), 8080)
            mail = scene.service("mail", 25, (v1,), 2525, Protocol.TCP)
            scene.start()
            for pod in (v1, v2):
                scene.application(pod, "web", 8080)
            scene.application(v1, "greeter", 2525)
            self._pods(scene)
            self._rules(client)
            self._first_call(scene, client, v1, only_v1)
            self._modes(scene, outsider, v1, only_v1)
            self._split(scene, client, web)
            self._server_first(client, mail)
            self._self_calls(scene, v1, only_v1)
            self._rotation(client, v1, only_v1, mail)
            self._stopped(client, v1, only_v1)
            self._metrics(client)
            self._step("Removing everything")
        self._summary()
        return all(check.ok for check in self.checks)

    # -- output -------------------------------------------------------------------------------------------

    def _step(self, title: str) -> None:
        self._steps += 1
        self._say(f"\n[{monotonic() - self._start:4.1f} s] {self._steps}. {title}")

    def _show(self, text: str) -> None:
        for line in text.rstrip().splitlines():
            self._say(f"    {line}")

    def _check(self, what: str, expected: str, measured: str, ok: bool) -> None:
        self.checks.append(Check(what, expected, measured, ok))
        self._show(f"{'ok' if ok else 'FAILED'}: {what}: {measured}")

    @contextmanager
    def _attempt(self, what: str, expected: str) -> Iterator[None]:
        """A step that breaks is a check that failed; the others still run."""
        try:
            yield
        except (OSError, http.client.HTTPException) as exc:
            self._check(what, expected, f"{type(exc).__name__}: {exc}", False)

    def _summary(self) -> None:
        self._step("Summary")
        rows = [("check", "expected", "measured", "ok")]
        rows += [(c.what, c.expected, c.measured, "yes" if c.ok else "NO") for c in self.checks]
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        rows.insert(1, ("-" * widths[0], "-" * widths[1], "-" * widths[2], "---"))
        for row in rows:
            self._show("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))
        good = sum(check.ok for check in self.checks)
        self._say(f"\n{good} of {len(self.checks)} checks passed in {monotonic() - self._start:.1f} s")

    # -- steps --------------------------------------------------------------------------------------------

    def _pods(self, scene: Scene) -> None:
        for pod in scene.pods.values():
            kind = pod.identity if pod.meshed else "no sidecar"
            self._show(f"{pod.name:10} {', '.join(pod.addresses):22} {kind}")
        for service in scene.services.values():
            behind = ", ".join(pod.name for pod in service.pods)
            at = ", ".join(service.addresses)
            self._show(
                f"Service {service.name}:{service.port} at {at} -> {behind} port {service.target_port}"
            )
        ready = [pod for pod in scene.meshed if pod.get("127.0.0.1", 15021, "/healthz/ready").status == 200]
        self._check("sidecars ready", "3", str(len(ready)), len(ready) == 3)

    def _rules(self, client: Pod) -> None:
        self._step("The iptables rules that hand a pod's connections to its sidecar")
        counts = []
        for program in ("iptables-save", "ip6tables-save")[: len(client.addresses)]:
            lines = run("ip", "netns", "exec", client.netns, program).splitlines()
            rules = [line for line in lines if line.startswith("-A") and "triomesh/" in line]
            counts.append(len(rules))
            if program == "iptables-save":
                redirects = [rule for rule in rules if "REDIRECT" in rule or "owner" in rule]
                self._show("\n".join(redirects[:6]))
        text = " and ".join(f"{count} for IPv{family}" for count, family in zip(counts, "46", strict=False))
        self._check(
            "rules in pod client", "as many in each family", text, len(set(counts)) == 1 and counts[0] > 0
        )

    def _first_call(self, scene: Scene, client: Pod, server: Pod, service: Service) -> None:
        self._step(
            "An unmodified client calls an unmodified server by the Service's name; the wire is watched"
        )
        url = f"http://{service.name}/{MARKER}"
        with Capture(scene.node, server.link) as wire:
            said = client.run(*scene.client_program(url))
        self._show(f"$ {scene.client_program(url)[0]} {url}\n{said}")
        self._check("call by name", "the server's answer", said, said == f"server-v1 /{MARKER}")
        payloads = wire.payloads(8080)
        hello = next((data for data in payloads if data[:2] == b"\x16\x03" and data[5:6] == b"\x02"), b"")
        self._show(f"{len(payloads)} segments with data; the server's first: {hello[:24].hex(' ')} ...")
        version = "TLS 1.3" if _TLS13 in hello else "no TLS 1.3 handshake"
        self._check("protocol on the wire", "TLS 1.3", version, version == "TLS 1.3")
        seen = _count(payloads)
        self._check("plaintext marker on the wire", "0 times", f"{seen} times", seen == 0)

    def _modes(self, scene: Scene, outsider: Pod, server: Pod, service: Service) -> None:
        self._step("A pod outside the mesh: PERMISSIVE takes its plaintext, STRICT does not")
        with Capture(scene.node, server.link) as wire:
            said = _tell(lambda: outsider.get(service.ip, 80, f"/{MARKER}"))
        seen = _count(wire.payloads(8080))
        self._show(f"PERMISSIVE: {said}")
        self._check("PERMISSIVE, plaintext", "200", said, said == "200")
        self._check("the watcher does see plaintext", "at least once", f"{seen} times", seen > 0)
        server.inbound = Inbound(mtls=MtlsMode.STRICT)
        scene.apply(server)
        said = _tell(lambda: outsider.get(service.ip, 80, "/"))
        refused = server.metric("triomesh_refused_total", direction="inbound", reason="plaintext")
        self._show(f"STRICT: {said}; the sidecar counts plaintext refused: {refused:g}")
        self._check(
            "STRICT, plaintext", "reset and counted", f"{said}, {refused:g}", "Reset" in said and refused > 0
        )
        said = _tell(lambda: scene["client"].get(service.ip, 80, "/"))
        self._check("STRICT, pod of the mesh", "200", said, said == "200")

    def _split(self, scene: Scene, client: Pod, web: Service) -> None:
        self._step(f"Nine in ten requests to v1, one in ten to v2: {REQUESTS} requests on one connection")
        web.subsets = {version: Subset(labels={"version": version}) for version in ("v1", "v2")}
        web.split = (WeightedTarget(subset="v1", weight=90), WeightedTarget(subset="v2", weight=10))
        scene.apply(client)
        by = {"server-v1": 0, "server-v2": 0}
        with self._attempt("split 90/10", "9 to 1"):
            caller = Http(client, web.ip, 80)
            try:
                for _ in range(REQUESTS):
                    by[caller.fetch("/").headers["x-served-by"]] += 1
            finally:
                caller.close()
            share = 100 * by["server-v2"] / REQUESTS
            # Four standard deviations of a fair draw.
            self._check("split 90/10, share of v2", "4.6 to 15.4 %", f"{share:.1f} %", 4.6 <= share <= 15.4)
        self._show(", ".join(f"{name}: {count}" for name, count in by.items()))

    def _server_first(self, client: Pod, mail: Service) -> None:
        self._step("TCP where the server speaks first")
        with self._attempt("server-first TCP", "greeting and echo"), client.connect(mail.ip, 25) as sock:
            with sock.makefile("rb") as lines:
                greeting = lines.readline()
                sock.sendall(b"helo mesh\r\n")
                answer = lines.readline()
            said = f"{greeting!r} {answer!r}"
            self._show(f"the server's greeting, and its answer to helo mesh: {said}")
            good = greeting.startswith(b"220 ") and answer == b"HELO MESH\r\n"
            self._check("server-first TCP", "greeting and echo", "both" if good else said, good)

    def _self_calls(self, scene: Scene, pod: Pod, service: Service) -> None:
        self._step("A pod calls itself: by Service address, own address, localhost and name")
        said = pod.run(*scene.client_program(f"http://{service.name}/"))
        answers = [
            _tell(lambda: pod.get(service.ip, 80)),
            _tell(lambda: pod.get(pod.ip, 8080)),
            _tell(lambda: pod.get("127.0.0.1", 8080)),
            "200" if said.startswith(pod.name) else said,
        ]
        self._check("calls to itself", "200, 200, 200, 200", ", ".join(answers), answers == ["200"] * 4)

    def _rotation(self, client: Pod, server: Pod, service: Service, mail: Service) -> None:
        self._step(f"Certificates that live {LEAF_LIFETIME} are replaced under load")
        before = {pod: _renewals(pod) for pod in (client, server)}

        def replaced() -> bool:
            return all(_renewals(pod) >= count + 2 for pod, count in before.items())

        with self._attempt("rotation under load", "0 failed"):
            with (
                Load([KeptHttp(client, service.ip, 80) for _ in range(2)]) as kept,
                Load([FreshHttp(client, service.ip, 80)]) as fresh,
                Load([FreshTcp(client, mail.ip, 25)]) as tcp,
            ):
                wait_for(replaced, "two renewals on either side", 20, every=0.1)
            failed = kept.failures + fresh.failures + tcp.failures
            total = kept.ok + fresh.ok + tcp.ok + failed.total()
            times = ", ".join(f"{pod.name} {_renewals(pod) - count:g}" for pod, count in before.items())
            self._show(f"renewals meanwhile: {times}")
            self._show(f"requests: {kept.ok} on {kept.dialled} kept connections, {fresh.ok} on new ones")
            self._show(f"TCP connections, each with a handshake of its own: {tcp.ok}")
            for failure, count in failed.most_common(3):
                self._show(f"{count} x {failure}")
            text = f"{failed.total()} of {total}"
            self._check("failed during rotation", "0", text, not failed and total > 0)
            closed = kept.dialled - 2
            self._check("kept connections closed", "0", str(closed), closed == 0)

    def _stopped(self, client: Pod, server: Pod, service: Service) -> None:
        self._step("The server is stopped: the response says who noticed, where and why")
        process = server.apps[0]
        process.terminate()
        process.wait()
        with self._attempt("server stopped", "503, explained"):
            reply = client.get(service.ip, 80)
            self._show(
                f"HTTP {reply.status}\nx-triomesh-error: {reply.error}\n\n{reply.body.decode().strip()}"
            )
            good = reply.status == 503 and "flag=UF" in reply.error
            self._check("server stopped", "503 with flag UF", f"{reply.status} {reply.error[:7]}", good)

    def _metrics(self, client: Pod) -> None:
        self._step("What the client's sidecar has counted (POD:15020/metrics)")
        names = ("requests_total", "handshakes_total", "certificate_renewals_total", "tcp_connections_opened")
        lines = client.metrics().splitlines()
        shown = [line for line in lines if line.startswith(tuple(f"triomesh_{name}" for name in names))]
        self._show("\n".join(shown[:12]))
        count = client.metric("triomesh_requests_total", direction="outbound", code="200", mtls="true")
        self._check("requests counted as mTLS", f"over {REQUESTS}", f"{count:g}", count > REQUESTS)


def _tell(call: Callable[[], Reply]) -> str:
    try:
        return str(call().status)
    except (OSError, http.client.HTTPException) as exc:
        return type(exc).__name__


def _count(payloads: list[bytes]) -> int:
    return b"".join(payloads).count(MARKER.encode())


def _renewals(pod: Pod) -> float:
    return pod.metric("triomesh_certificate_renewals_total", result="ok")

"""Run two pods with hand-written sidecars on a local cluster and show what the mesh does for them.

Exit code 0 if all it shows is as expected, 1 if not, 2 if it cannot run here.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from examples.two_pods.netns import SceneError, run, wait_for
from injector.netinit.plan import NEVER_INBOUND
from mesh_api.sidecar import (
    Destination,
    Endpoint,
    Inbound,
    MtlsMode,
    Pod,
    Snapshot,
    TlsMode,
    Workload,
    encode_snapshot,
)

HERE = Path(__file__).parent
APPS = HERE.parent / "two_pods" / "apps"
SOCKETS = Path("/run/triomesh/pods-by-hand")
NAMESPACE = "shop"
MESHED = ("client", "web")
BIN = Path(sys.executable).parent


class Mesh:
    """The pods of `mesh.yaml` on one cluster."""

    def __init__(self, cluster: str) -> None:
        self.cluster = cluster
        self.kubeconfig = f"/var/lib/triomesh/local/{cluster}/kubeconfig"
        self.failed = 0

    def kubectl(self, *argv: str, stdin: str | None = None) -> str:
        return run(str(BIN / "kubectl"), "--kubeconfig", self.kubeconfig, "-n", NAMESPACE, *argv, text=stdin)

    def get(self, *argv: str) -> Any:
        return json.loads(self.kubectl("get", *argv, "-o", "json"))

    def until(self, what: str, done: Callable[[], object], limit_s: float = 60) -> None:
        wait_for(done, what, limit_s, every=0.2)

    def check(self, what: str, ok: bool, shown: str) -> None:
        self.failed += not ok
        print(f"  {'ok' if ok else 'FAILED'}: {what}: {shown}")

    def apply(self) -> None:
        """Create everything; the meshed pods wait for their configuration."""
        run(
            str(BIN / "kubectl"), "--kubeconfig", self.kubeconfig, "apply", "-f", "-",
            text=json.dumps({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}),
        )  # fmt: skip
        self.config_map("apps", {f.name: f.read_text() for f in APPS.glob("*.py")})
        run(str(BIN / "kubectl"), "--kubeconfig", self.kubeconfig, "apply", "-f", str(HERE / "mesh.yaml"))

    def config_map(self, name: str, data: dict[str, str]) -> None:
        made = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}
        self.kubectl("apply", "-f", "-", stdin=json.dumps(made))

    def addresses(self, pod: str) -> tuple[str, ...]:
        return tuple(entry["ip"] for entry in self.get("pod", pod)["status"].get("podIPs", ()))

    def configure(self, mtls: MtlsMode = MtlsMode.PERMISSIVE) -> None:
        """Write the sidecars' configurations from what the API server knows."""
        addresses = {name: self.addresses(name) for name in MESHED}
        service = self.get("service", "web")["spec"]
        identity = f"spiffe://cluster.local/ns/{NAMESPACE}/sa/"
        web = Destination(
            name="web",
            namespace=NAMESPACE,
            port=80,
            addresses=tuple(service["clusterIPs"]),
            endpoints=(
                Endpoint(address=addresses["web"][0], port=8080, tls=TlsMode.MESH, identity=identity + "web"),
            ),
        )
        pods = tuple(
            Pod(
                name=name,
                namespace=NAMESPACE,
                addresses=addresses[name],
                identity=identity + name,
                workload=name,
                plaintext_ports=NEVER_INBOUND,
            )
            for name in MESHED
        )
        for name in MESHED:
            snapshot = Snapshot(
                workload=Workload(name=name, namespace=NAMESPACE, service_account=name),
                trust_domain="cluster.local",
                inbound=Inbound(mtls=mtls),
                destinations=(web,),
                pods=pods,
                access_log=True,
            )
            self.config_map(f"{name}-mesh", {"config.json": encode_snapshot(snapshot).decode()})

    def last_line(self, pod: str, container: str) -> str:
        return self.kubectl("logs", pod, "-c", container, "--tail=1").strip()

    def show(self) -> None:
        """Everything, in order."""
        print("creating the pods")
        self.apply()
        self.until("both meshed pods have addresses", lambda: all(self.addresses(n) for n in MESHED))
        print("writing the sidecars' configurations")
        self.configure()
        self.kubectl("wait", "--for=condition=Ready", "pod", "--all", "--timeout=60s")
        print(self.kubectl("get", "pods", "-o", "wide").rstrip())
        self.until("an answer", lambda: self.last_line("client", "client").startswith("web /"))
        self.check("the client's call by name", True, self.last_line("client", "client"))
        record = self.last_line("web", "triomesh-proxy")
        peer = f"spiffe://cluster.local/ns/{NAMESPACE}/sa/client"
        records = self.kubectl("logs", "web", "-c", "triomesh-proxy", "--tail=50")
        self.check(
            "the identity that web's sidecar saw", peer in records, peer if peer in records else record
        )
        self.until("an answer", lambda: self.last_line("outsider", "client").startswith("web /"))
        self.check("PERMISSIVE: a pod outside the mesh", True, self.last_line("outsider", "client"))
        print("switching web to STRICT by changing its ConfigMap")
        self.configure(MtlsMode.STRICT)
        self.until("a refusal", lambda: "web /" not in self.last_line("outsider", "client"), 90)
        self.check("STRICT: a pod outside the mesh", True, self.last_line("outsider", "client"))
        answer = self.last_line("client", "client")
        self.check("STRICT: the pod of the mesh", answer.startswith("web /"), answer)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.pods_by_hand", description=__doc__)
    parser.add_argument("--cluster", default="by-hand", help="name of the local cluster (default by-hand)")
    parser.add_argument("--keep", action="store_true", help="leave the cluster running")
    args = parser.parse_args()
    mesh = Mesh(args.cluster)
    meshctl = (str(BIN / "meshctl"), "local")
    try:
        print(run(*meshctl, "up", "--name", args.cluster).rstrip())
        mesh.show()
    except (SceneError, TimeoutError) as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 2
    finally:
        if args.keep:
            print(f"the cluster is kept; remove it with: meshctl local down --purge --name {args.cluster}")
        else:
            print(run(*meshctl, "down", "--purge", "--name", args.cluster).rstrip())
            shutil.rmtree(SOCKETS, ignore_errors=True)
    return 1 if mesh.failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""The whole story on one machine: a cluster, the mesh, a shop, and what goes wrong in it."""

from __future__ import annotations

from typing import Any, NamedTuple

from examples.bookshop.shop import HERE, NAMESPACE, SYSTEM, Shop, Totals
from examples.two_pods.netns import wait_for

IN_SHOP = ("-n", NAMESPACE)
LEAF_S = 20
SPLIT_REQUESTS = 2000


class Measured(NamedTuple):
    """One line of the summary."""

    what: str
    found: str
    expected: str
    ok: bool


class Demo:
    """The steps in order; `measured` holds what they found."""

    def __init__(self, shop: Shop) -> None:
        self.shop = shop
        self.measured: list[Measured] = []

    def check(self, what: str, found: object, expected: str, ok: bool) -> None:
        """Keep one result, and say it."""
        self.measured.append(Measured(what, str(found), expected, ok))
        print(f"  {'ok' if ok else 'FAILED'}: {what}: {found} (expected {expected})", flush=True)

    def run(self) -> None:
        """Everything after the cluster is up. Raises SceneError, TimeoutError."""
        self.install()
        self.deploy()
        self.look()
        self.shop.title("A new root joins the trust bundle, while the load goes on")
        self.shop.show("meshctl", "ca", "rotate")
        rotation = self.shop.totals()
        self.split()
        self.shop.title("The new root signs from now on")
        self.shop.show("meshctl", "ca", "rotate", "--activate")
        self.overflow()
        self.fail()
        self.shop.title("The old root is no longer trusted")
        self.shop.show("meshctl", "ca", "rotate", "--retire")
        self.rotated(rotation)
        self.lose_control_plane()
        self.live()

    def summary(self) -> bool:
        """Print the table; whether everything was as expected."""
        self.shop.title("What was measured")
        rows = [("", "measured", "expected"), *((m.what, m.found, m.expected) for m in self.measured)]
        widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
        for row, ok in zip(rows, ("", *(m.ok for m in self.measured)), strict=True):
            verdict = {"": "", True: "ok", False: "FAILED"}[ok]
            print(f"  {verdict:7}{row[0]:{widths[0]}}  {row[1]:{widths[1]}}  {row[2]}")
        return all(m.ok for m in self.measured)

    # -- the steps ------------------------------------------------------------------------------------------

    def install(self) -> None:
        """The control plane."""
        self.shop.title("The control plane is installed")
        values = ("--set", "replicas=1", "--set", f"ca.leafLifetimeSeconds={LEAF_S}")
        self.shop.show("meshctl", "install", *values, "--wait", lines=3)

    def deploy(self) -> None:
        """A labelled namespace and the shop."""
        self.shop.title("The shop is deployed in a namespace with the label triomesh.dev/injection=enabled")
        self.shop.show("kubectl", "apply", "-k", str(HERE.relative_to(HERE.parents[1])), lines=3)
        self.shop.kubectl(*IN_SHOP, "wait", "--for=condition=Available", "deploy", "--all", "--timeout=80s")
        self.shop.show("kubectl", *IN_SHOP, "get", "pods")
        wait_for(lambda: self.shop.totals()["200"] > 20, "the first pages", 60, every=0.5)
        self.shop.after(self.shop.totals(), 600)

    def edges(self) -> list[dict[str, Any]]:
        """What `meshctl edges` knows of the last minute."""
        found: list[dict[str, Any]] = self.shop.json("meshctl", "edges", *IN_SHOP)["edges"]
        return found

    def counted(self, what: str) -> int:
        """A count of all edges, once it is above 0: sidecars report every five seconds."""
        return wait_for(lambda: sum(int(e[what]) for e in self.edges()), f"{what} in the stats", 30, every=1)

    def look(self) -> None:
        """Stats and graph with no other server."""
        self.shop.title("Who talks to whom, and how well")
        self.shop.show("meshctl", "stat", "deploy", *IN_SHOP)
        self.shop.show("meshctl", "edges", *IN_SHOP)
        self.shop.show("meshctl", "graph", *IN_SHOP)
        # Before everything was ready some calls reached nobody.
        edges = [edge for edge in self.edges() if edge["mtls"] is not None]
        secure = sum(edge["mtls"] == 1 for edge in edges)
        self.check(
            "edges that are wholly mTLS", f"{secure} of {len(edges)}", "5 of 5", secure == len(edges) == 5
        )

    def split(self) -> None:
        """90 to 10, measured."""
        self.shop.title("Nine in ten requests for reviews go to v1, one in ten to v2")
        self.shop.show(
            "meshctl", "policy", "set", "reviews", *IN_SHOP,
            "--subset", "v1=version:v1", "--subset", "v2=version:v2", "--split", "v1=90,v2=10",
            "--timeout", "5s", "--retries", "2", "--retry-on", "5xx,connect-failure", "--eject-after", "5",
        )  # fmt: skip
        before = self._once_split()
        after = self.shop.after(before, SPLIT_REQUESTS)
        v1, v2 = after.since(before, "v1"), after.since(before, "v2")
        share = 100 * v1 / max(1, v1 + v2)
        self.check(f"share of v1 over {v1 + v2} requests", f"{share:.1f} %", "87 to 93 %", 87 <= share <= 93)
        self.shop.show("meshctl", "routes", "reviews", *IN_SHOP)

    def _once_split(self) -> Totals:
        """The totals at a moment after the policy has reached the callers."""
        before = self.shop.totals()
        return self.shop.after(before, 20)

    def overflow(self) -> None:
        """A circuit breaker at work."""
        self.shop.title("At most four requests at once to reviews, from each caller; a burst of 20 comes")
        self.shop.show("meshctl", "policy", "set", "reviews", *IN_SHOP, "--max-requests", "4")
        self.shop.kubectl("apply", "-f", str(HERE / "burst.yaml"))
        wait = ("wait", "--for=condition=Complete", "job/burst", "--timeout=60s")
        self.shop.kubectl(*IN_SHOP, *wait)
        said = self.shop.show("kubectl", *IN_SHOP, "logs", "job/burst", "-c", "burst")
        named = [line for line in said.splitlines() if "503" in line and "flag=UO" in line]
        refused = sum(int(line.split()[0]) for line in named)
        self.check("requests of the burst refused with flag UO", refused, "some", refused > 0)
        overflows = self.counted("overflows")
        self.check("overflows in the stats", overflows, str(refused), overflows == refused)
        self.shop.show("meshctl", "policy", "set", "reviews", *IN_SHOP, "--max-requests", "1000")

    def fail(self) -> None:
        """One of two pods of v2 fails: retries hide it, then it is ejected."""
        self.shop.title("One of v2's two pods begins to fail every request")
        print("  turns are taken here: least-latency, the default, would hardly ask a failing pod again")
        self.shop.show("meshctl", "policy", "set", "reviews", *IN_SHOP, "--balancer", "round-robin")
        bad = self.shop.pods("reviews", version="v2")[0]
        before = self.shop.totals()
        print(f"  {bad}: {self.shop.serves(bad, '/fault?percent=100')}")
        after = self.shop.after(before, 1500)
        failed = after.since(before, "failed")
        self.check("requests that a client saw fail, of 1500", failed, "0", failed == 0)
        ejections = self.counted("ejections")
        self.check("ejections in the stats", ejections, "1 or more", ejections > 0)
        self.shop.show("meshctl", "stat", "svc", "reviews", *IN_SHOP)
        self.shop.show("meshctl", "edges", *IN_SHOP, "-o", "wide")

    def rotated(self, before: Totals) -> None:
        """The rotation of root and certificates under load."""
        after = self.shop.after(self.shop.totals(), 300)
        failed, made = after.since(before, "failed"), after.since(before, "requests")
        self.check(f"failed while the root was replaced, of {made}", failed, "0", failed == 0)
        self.shop.show("meshctl", "ca", "show")

    def lose_control_plane(self) -> None:
        """The control plane is killed."""
        self.shop.title("The control plane is killed")
        before = self.shop.totals()
        label = "app.kubernetes.io/name=triomesh-control"
        now = ("--force", "--grace-period=0")
        self.shop.show("kubectl", "-n", SYSTEM, "delete", "pod", "-l", label, *now)
        after = self.shop.after(before, 600)
        failed = after.since(before, "failed")
        self.check("failed without a control plane, of 600", failed, "0", failed == 0)
        status = ("rollout", "status", "deploy/triomesh-control", "--timeout=60s")
        self.shop.show("kubectl", "-n", SYSTEM, *status)

    def live(self) -> None:
        """Requests as they go by."""
        self.shop.title("Requests as they go by")
        self.shop.show("meshctl", "top", *IN_SHOP, "--seconds", "3s", lines=12)

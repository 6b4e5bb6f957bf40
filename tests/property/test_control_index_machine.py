"""In whatever order things happen, the index says what its objects say, and names every key that changed."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mesh_api.discovery import Resource, encode_content, read_content
from mesh_control.compile import Compiler, Mesh, content
from mesh_control.index import Index
from mesh_control.index.objects import KINDS, Refused
from tests.support.control_objects import (
    endpoint,
    mesh_policy,
    namespace,
    node,
    pod,
    read,
    service,
    service_cidr,
    slice_of,
    traffic_policy,
)

MESH = Mesh(trust_domain="cluster.local", bundle_pem="PEM")
V4 = ("10.1.0.1", "10.1.0.2", "10.2.0.3")
V6 = ("fd00::1", "fd00::2")
VIPS = ("10.9.0.1", "10.9.0.2", "fd09::1", V4[0])
NOBODYS = ("10.1.0.9", "10.2.0.99", "10.9.0.9", "10.8.0.9", "fd00::9", "fd09::9")
NETWORKS = ("10.9.0.0/31",)
"""Of VIPS the first is in it; around the others something is concluded."""
IPS = V4 + V6 + VIPS + NOBODYS
PODS, SERVICES, NODES = ("p1", "p2", "p3"), ("a", "b"), ("n1", "n2")
CREATED = ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z")
KEYS = (
    "workload",
    *(f"pod/{ip}" for ip in V4 + V6),
    *(f"address/{f'[{ip}]' if ':' in ip else ip}:{port}" for ip in IPS for port in (80, 81)),
    *(
        f"destination/shop/{name}:{port}{rest}"
        for name in SERVICES
        for port in (80, 81)
        for rest in ("", "/ipv6", "/ipv4/n1", "/ipv4/n2", "/ipv6/n1")
    ),
)

maybe = st.booleans()
ports_text = st.sampled_from(("8080", "80", "80-90", "none", "rubbish"))


def annotations(*names):
    chosen = st.dictionaries(st.sampled_from(names), ports_text, max_size=2)
    return chosen.map(lambda found: {f"triomesh.dev/{key}": value for key, value in found.items()})


pods = st.builds(
    lambda name, ips, **more: pod(name, *ips, **more),
    st.sampled_from(PODS),
    st.tuples(st.sampled_from(V4), st.sampled_from(V6)).flatmap(
        lambda two: st.sampled_from((two, two[:1], ()))
    ),
    sidecar=maybe,
    account=st.sampled_from(("web", "db")),
    phase=st.sampled_from(("Pending", "Running", "Running", "Running", "Succeeded", "Failed")),
    node=st.sampled_from(NODES),
    labels=st.sampled_from(({"app": "a"}, {"app": "a", "version": "2"})),
    annotations=annotations("exclude-inbound-ports", "include-inbound-ports", "opaque-ports"),
    creationTimestamp=st.sampled_from(CREATED),
    deletionTimestamp=st.sampled_from((None, None, CREATED[1])),
    host_network=st.sampled_from((False, False, False, True)),
    ownerReferences=st.sampled_from(([], [{"kind": "StatefulSet", "name": "db", "controller": True}])),
)
services = st.builds(
    lambda name, ips, second, **more: service(
        name,
        *ips,
        ports=[
            {"name": "http", "port": 80},
            *([{"name": "x", "port": 81, "appProtocol": second}] if second else []),
        ],
        **more,
    ),
    st.sampled_from(SERVICES),
    st.sampled_from(((), VIPS[:1], VIPS[1:2], (VIPS[0], VIPS[2]))),
    st.sampled_from(("", "http", "tcp", "grpc")),
    annotations=annotations("opaque-ports"),
    created=st.sampled_from(CREATED),
    externalIPs=st.sampled_from(([], [VIPS[1]], [V4[0]])),
    internalTrafficPolicy=st.sampled_from(("Cluster", "Local")),
    sessionAffinity=st.sampled_from(("None", "None", "ClientIP")),
    publishNotReadyAddresses=maybe,
)
endpoints = st.builds(
    lambda ip, named, node_name, zones, only, **more: endpoint(
        ip,
        named,
        nodeName=node_name,
        hints={key: [{"name": n} for n in for_] for key, for_ in (("forZones", zones), ("forNodes", only))},
        **more,
    ),
    st.sampled_from(V4),
    st.sampled_from((*PODS, None)),
    st.sampled_from((*NODES, None)),
    st.sampled_from(((), ("z1",), ("z2",))),
    st.sampled_from(((), (), NODES[:1], NODES)),
    ready=st.sampled_from((True, True, False, None)),
    serving=st.sampled_from((True, None, False)),
    terminating=st.sampled_from((False, None, True)),
)
slices = st.builds(
    lambda owner, number, found, port: slice_of(
        owner, *found, name=f"s{number}", port=port, port_name="http" if number < 3 else "x"
    ),
    st.sampled_from(SERVICES),
    st.integers(1, 3),
    st.lists(endpoints, max_size=4),
    st.sampled_from((80, 8080)),
)
nodes = st.builds(
    lambda name, cidrs, zone, ips: node(name, *cidrs, zone=zone, ips=ips),
    st.sampled_from(NODES),
    st.sampled_from(((), ("10.1.0.0/16",), ("10.2.0.0/24", "fd00::/64"))),
    st.sampled_from(("z1", "z2")),
    st.sampled_from(((), (V4[0],))),
)
service_cidrs = st.builds(
    lambda name, cidrs: service_cidr(name, *cidrs),
    st.sampled_from(("kubernetes", "more")),
    st.sampled_from((("10.9.0.0/24",), ("10.9.0.0/28", "fd09::/112"), ("10.8.0.0/16",), ("rubbish",))),
)
namespaces = st.builds(
    lambda text: namespace("shop", **({"opaque_ports": text} if text else {})),
    st.sampled_from(("", "80", "8080")),
)
arms = st.sampled_from(
    (
        {"subset": "v2", "weight": 3},
        {"service": "a"},
        {"service": "b"},
        {"service": "b", "port": 81},
        {"service": "c"},
        {"port": 81},
    )
)
traffic_policies = st.builds(
    lambda name, target, to, more, **head: traffic_policy(
        name,
        target,
        subsets={"v2": {"labels": {"version": "2"}, **({"outliers": {"interval": "5s"}} if more else {})}},
        routes=[{"to": to}] if to else [],
        **head,
        **more,
    ),
    st.sampled_from(("t1", "t2", "t3")),
    st.sampled_from((*SERVICES, "c")),
    st.lists(arms, max_size=2),
    st.sampled_from(
        (
            {},
            {"timeouts": {"request": "2s"}},
            {"tls": {"mode": "disable"}},
            {"circuitBreaker": {"maxRequests": 7}},
            {"connection": {"httpVersion": "2"}},
            {"timeouts": {"request": "2"}},
            {"rubbish": 1},
        )
    ),
    created=st.sampled_from(CREATED),
)
mesh_settings = st.sampled_from(
    (
        {},
        {"mtls": {"mode": "STRICT"}},
        {"mtls": {"mode": "DISABLE", "ports": {"8080": "STRICT"}}},
        {"mtls": {"ports": {"8080": "DISABLE"}}},
        {"egress": {"mode": "refuse"}, "accessLog": "all", "pathNormalization": "none"},
        {"timeouts": {"request": "9s"}},
        {"mtls": {"mode": "SOMETIMES"}},
    )
)
mesh_policies = st.builds(
    lambda name, where, refs, defaults, overrides, **head: mesh_policy(
        name,
        where,
        defaults=defaults,
        overrides=overrides,
        **({"targetRefs": [{"kind": "StatefulSet", "name": ref} for ref in refs]} if refs else {}),
        **head,
    ),
    st.sampled_from(("m1", "m2")),
    st.sampled_from(("shop", "shop", "triomesh-system", "other")),
    st.sampled_from(((), (), ("db",), ("db", "x"))),
    mesh_settings,
    mesh_settings,
    created=st.sampled_from(CREATED),
)
OBJECTS = {
    "Pod": pods,
    "Service": services,
    "EndpointSlice": slices,
    "Node": nodes,
    "ServiceCIDR": service_cidrs,
    "Namespace": namespaces,
    "TrafficPolicy": traffic_policies,
    "MeshPolicy": mesh_policies,
}
anything = st.one_of(*(st.tuples(st.just(kind), made) for kind, made in OBJECTS.items()))


class Machine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.index = Index("cluster.local", NETWORKS)
        self.compiler = Compiler(self.index, MESH)
        self.objects = {kind: {} for kind in KINDS}
        self.refused = {kind: {} for kind in KINDS}
        self.seen = self.compiled(self.index)
        self.nodes = dict.fromkeys(PODS, "")

    def node_of(self, caller):
        """A sidecar asks for its own node's view only; its pod is there, and never moves."""
        found = self.objects["Pod"].get(("shop", caller))
        return found.node if found else ""

    def compiled(self, index):
        return {(key, caller): content(index, key, ("shop", caller), MESH) for key in KEYS for caller in PODS}

    def check(self, changes):
        now = self.compiled(self.index)
        nodes = {caller: self.node_of(caller) for caller in PODS}
        for (key, caller), before in self.seen.items():
            by_node = key[-3:] in ("/n1", "/n2")
            moved = nodes[caller] != self.nodes[caller]
            foreign = (by_node and key[-2:] != nodes[caller]) or (
                moved and (by_node or key.startswith("address/"))
            )
            if now[key, caller] != before and not foreign:
                assert changes.covers(key, ("shop", caller)), (key, caller, before, now[key, caller])
        self.seen, self.nodes = now, nodes

    @rule(found=anything)
    def apply(self, found):
        kind, obj = found
        decoded = read(kind, obj)
        self.keep(kind, decoded)
        changes = self.index.apply(decoded)
        self.check(changes)
        if kind.endswith("Policy") and isinstance(decoded, Refused):
            assert (kind, decoded.key) in changes.policies
        assert not self.index.apply(read(kind, obj)), "the same object again changes nothing"

    def keep(self, kind, decoded):
        """Of an object that is refused the last good one stays, if it was the same object."""
        refused, objects = self.refused[kind], self.objects[kind]
        if isinstance(decoded, Refused):
            refused[decoded.key] = decoded
            if decoded.key in objects and objects[decoded.key].created != decoded.created:
                del objects[decoded.key]
        else:
            objects[decoded.key] = decoded
            refused.pop(decoded.key, None)

    @rule(kind=st.sampled_from(KINDS), which=st.integers(0, 3))
    def delete(self, kind, which):
        keys = sorted({*self.objects[kind], *self.refused[kind]})
        key = keys[which % len(keys)] if keys else ("shop", "nobody")
        self.objects[kind].pop(key, None)
        self.refused[kind].pop(key, None)
        self.check(self.index.delete(kind, *key))

    @rule(kind=st.sampled_from(list(OBJECTS)), data=st.data())
    def relist(self, kind, data):
        found = [read(kind, obj) for obj in data.draw(st.lists(OBJECTS[kind], max_size=4))]
        found = list({obj.key: obj for obj in found}.values())
        before, self.refused[kind] = self.objects[kind], {}
        self.objects[kind] = {obj.key: before[obj.key] for obj in found if obj.key in before}
        for obj in found:
            self.keep(kind, obj)
        self.check(self.index.replace(kind, found))

    @invariant()
    def the_same_as_built_from_the_objects(self):
        fresh = Index("cluster.local", NETWORKS)
        for kind in reversed(KINDS):
            for _, obj in sorted(self.objects[kind].items(), reverse=True):
                fresh.apply(obj)
            for _, obj in sorted(self.refused[kind].items(), reverse=True):
                fresh.apply(obj)
        assert self.compiled(fresh) == self.seen
        assert fresh.problems() == self.index.problems()

    @invariant()
    def what_is_said_can_be_used(self):
        for (key, caller), found in self.seen.items():
            assert self.compiler.lookup(key, ("shop", caller)) == found
            if found is not None:
                read_content(Resource(key, "", encode_content(found)), "cluster.local")


Machine.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestIndexMachine = Machine.TestCase

"""Both ends of discovery, with messages in flight: in the end they agree, and with the source.

No I/O: the server's subscriptions, the sidecar's demand and contents, and two queues between them.
"""

from collections import deque
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

from mesh_api.discovery import AddressAnswer, Held, Update, address_key, led_to
from mesh_api.sidecar import Destination, Pod
from mesh_api.traffic import Route, WeightedTarget
from mesh_control.serve.subscriptions import PodRef, Session, Subscriptions
from mesh_proxy.discovery import demand as demand_module
from mesh_proxy.discovery.contents import Absent, Contents
from mesh_proxy.discovery.demand import Demand
from mesh_proxy.net.addr import Addr

IPS = [f"10.0.0.{n}" for n in range(1, 6)]
ADDRESSES = [Addr(ip, 80) for ip in IPS]
NAMES = ["a", "b", "c"]


class World:
    def __init__(self):
        self.contents = {}
        self.unknown = set()
        """Addresses of which nobody can say anything."""
        self.subs = Subscriptions(self.lookup, lambda key, size: None, settle_s=0.0)
        self.demand = Demand()
        self.held = Contents("cluster.local", self.demand.wants)
        self.connect()

    def lookup(self, key, pod):
        nobody = AddressAnswer() if key.startswith("address/") and key not in self.unknown else None
        return self.contents.get(key, nobody)

    def connect(self):
        """A new stream: what was in flight is lost."""
        if hasattr(self, "session"):
            self.subs.forget(self.session)
        self.up, self.down = deque(), deque()
        self.session = Session(PodRef("shop", "p"), lambda: None)
        keys = tuple(Held(key, self.held.version(key)) for key in self.demand.everything())
        self.up.append(("subscribe", keys, self.held.holds()))

    # the cluster

    def own(self, n, owner):
        """Address `n` belongs to a destination, a pod, or nobody."""
        key = address_key(*ADDRESSES[n])
        self.unknown.discard(key)
        if owner == "unknown":
            self.unknown.add(key)
        if owner in NAMES:
            self.change({key: AddressAnswer(destination=f"shop/{owner}:80")})
        elif owner == "pod":
            self.change({key: AddressAnswer(pod=IPS[n]), f"pod/{IPS[n]}": self.pod(n, "x")})
        else:
            self.change({key: None})

    def pod(self, n, account):
        identity = f"spiffe://cluster.local/ns/shop/sa/{account}"
        return Pod(name=account, namespace="shop", addresses=(IPS[n],), identity=identity)

    def content(self, name, revision, leads=()):
        """A destination, and where its one route leads."""
        arms = tuple(WeightedTarget(destination=f"shop/{other}:80") for other in leads)
        dest = Destination(
            name=name,
            namespace="shop",
            port=80,
            addresses=(f"10.9.9.{revision}",),
            routes=(Route(to=arms),) if arms else (),
        )
        self.change({f"destination/shop/{name}:80": dest if revision else None})

    def change(self, contents):
        for key, content in contents.items():
            if content is None:
                self.contents.pop(key, None)
            else:
                self.contents[key] = content
        self.subs.changed(contents, 0.0)

    # the sidecar

    def dial(self, n):
        self.demand.address(ADDRESSES[n], 0.0)
        self.trim()

    def trim(self):
        evicted = self.demand.evict()
        if evicted:
            self.held.drop(evicted)

    def speak(self):
        subscribe, unsubscribe = self.demand.take()
        if unsubscribe:
            self.up.append(("unsubscribe", tuple(unsubscribe)))
        if subscribe:
            self.up.append(("subscribe", tuple(map(Held, subscribe)), ()))

    def receive(self):
        if not self.down:
            return
        changes = self.held.apply(self.down.popleft())
        for who in changes.answered:
            if isinstance(who, Addr) and who in self.held.answers:
                self.demand.learnt(who, self.held.answers[who] is not Absent.NOT_IN_MESH)
        for key in changes.again:
            self.demand.again(key)
        self.trim()

    # the server

    def serve(self):
        if self.up:
            kind, *rest = self.up.popleft()
            if kind == "subscribe":
                self.subs.subscribe(self.session, *rest)
            else:
                self.subs.unsubscribe(self.session, *rest)

    def push(self):
        # Withheld in the first round, told in the second.
        groups = [*self.subs.collect(self.session, 1.0, True), *self.subs.collect(self.session, 2.0, True)]
        if groups:
            resources = tuple(r for g in groups for r in g.resources)
            self.down.append(Update(1, resources, tuple(k for g in groups for k in g.removed)))

    def settle(self):
        for _ in range(60):
            self.speak()
            while self.up:
                self.serve()
            self.push()
            if not self.down and not self.demand.changed:
                break
            while self.down:
                self.receive()
        else:
            raise AssertionError("they never come to rest")

    def check(self):
        for addr in ADDRESSES:
            key = address_key(*addr)
            if not self.demand.wants(key):
                assert addr not in self.held.answers
                continue
            answer = self.lookup(key, None)
            answer = answer or AddressAnswer()
            brought = f"destination/{answer.destination}" if answer.destination else f"pod/{answer.pod}"
            expected = Absent.NOT_IN_MESH if answer == AddressAnswer() else self.contents.get(brought)
            if key in self.unknown:
                expected = None
            assert self.held.answers.get(addr) == expected, key
            for led in led_to(expected) if isinstance(expected, Destination) else ():
                name = led.removeprefix("destination/")
                assert self.held.destination(name) == self.contents.get(led), (key, led)
        asked = {key for key in self.session.asked if key != "workload"}
        assert asked == {k for k in (address_key(*addr) for addr in ADDRESSES) if self.demand.wants(k)}
        entitled = {*self.session.brought, *self.session.led}
        assert entitled >= {held.key for held in self.held.holds()}
        assert {dest.name for dest in self.held.destinations()} <= set(NAMES)


steps = st.lists(
    st.one_of(
        st.tuples(st.just("dial"), st.integers(0, 4)),
        st.tuples(st.just("own"), st.integers(0, 4), st.sampled_from([*NAMES, "pod", "nobody", "unknown"])),
        st.tuples(
            st.just("content"),
            st.sampled_from(NAMES),
            st.integers(0, 3),
            st.lists(st.sampled_from(NAMES), unique=True, max_size=2),
        ),
        st.tuples(
            st.sampled_from(["speak", "serve", "push", "receive", "receive", "serve", "connect", "settle"])
        ),
    ),
    max_size=60,
)


def test_a_content_that_was_dropped_while_an_answer_to_it_was_under_way():
    with mock.patch.multiple(demand_module, MAX_UNKNOWN=2, MAX_KNOWN=2):
        world = World()
        world.content("a", 1)
        world.content("b", 1)
        world.own(0, "a")
        world.own(1, "b")
        world.own(2, "b")
        world.dial(0)
        world.dial(1)
        world.settle()
        world.dial(2)
        world.speak()
        world.serve()
        world.push()
        world.receive()  # the third is known now: the first is given up, with `a`
        assert not world.held.answers.get(ADDRESSES[0])
        world.own(1, "a")
        world.push()  # the server has not heard of that yet, so `a` is not sent
        world.receive()
        assert ADDRESSES[1] not in world.held.answers
        world.settle()
        world.check()


@settings(max_examples=300, deadline=None)
@given(steps)
def test_both_ends_agree_in_the_end(script):
    with mock.patch.multiple(demand_module, MAX_UNKNOWN=2, MAX_KNOWN=2):
        world = World()
        for name, *args in script:
            getattr(world, name)(*args)
        world.settle()
        world.check()

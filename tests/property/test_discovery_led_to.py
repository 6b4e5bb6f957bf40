"""What routes lead to comes with the destination: a sidecar that keeps what it is entitled to misses nothing.

No I/O and no messages in flight; the sidecar here is the protocol's words (mesh_api.discovery), nothing more.
"""

from hypothesis import given, settings
from hypothesis import strategies as st

from mesh_api.discovery import AddressAnswer, Held, brought_by, encode_content, led_to, version_of
from mesh_api.sidecar import Destination
from mesh_api.traffic import Route, WeightedTarget
from mesh_control.serve.subscriptions import PodRef, Session, Subscriptions

NAMES = ("a", "b", "c", "d")
KEYS = tuple(f"destination/shop/{name}:80" for name in NAMES)
ADDRESSES = tuple(f"address/10.9.0.{n}:80" for n in range(3))


def destination(name, leads, revision):
    arms = tuple(WeightedTarget(destination=f"shop/{other}:80") for other in leads)
    return Destination(
        name=name,
        namespace="shop",
        port=80,
        addresses=(f"10.9.1.{revision}",),
        routes=(Route(to=arms),) if arms else (),
    )


class Sidecar:
    """Keeps what it asked for, what that brings, and what the brought destinations lead to."""

    def __init__(self, subs):
        self.subs = subs
        self.session = Session(PodRef("shop", "p"), lambda: None)
        self.asked = set()
        self.held = {}

    def entitled(self):
        first = set(self.asked)
        for key in self.asked:
            if isinstance(answer := self.held.get(key), AddressAnswer):
                first |= set(brought_by(answer))
        return first | {
            led
            for key in first
            if isinstance(self.held.get(key), Destination)
            for led in led_to(self.held[key])
        }

    def trim(self):
        entitled = self.entitled()
        self.held = {key: content for key, content in self.held.items() if key in entitled}

    def ask(self, key):
        self.asked.add(key)
        self.subs.subscribe(self.session, [Held(key, self.version(key))], self.holds())

    def holds(self):
        return [Held(key, self.version(key)) for key in self.held]

    def version(self, key):
        return version_of(encode_content(self.held[key])) if key in self.held else ""

    def drop(self, key):
        self.asked.discard(key)
        self.subs.unsubscribe(self.session, [key])
        self.trim()

    def reconnect(self):
        self.subs.forget(self.session)
        assert not len(self.subs), "nothing is left of a stream that has ended"
        self.session = Session(PodRef("shop", "p"), lambda: None)
        self.subs.subscribe(self.session, [Held(k, self.version(k)) for k in self.asked], self.holds())

    def take(self, lookup, refuse=False):
        """One update: applied whole, or refused."""
        groups = self.subs.collect(self.session, 0.0, True)
        if refuse:
            self.subs.refused(self.session, [*(group.key for group in groups), "another"])
            return
        for group in groups:
            for key in group.removed:
                self.held.pop(key, None)
            for resource in group.resources:
                content = lookup(resource.key, None)
                assert version_of(encode_content(content)) == resource.version
                self.held[resource.key] = content
        self.trim()
        missing = {key for key in self.entitled() if lookup(key, None) is not None} - self.held.keys()
        assert missing <= self.asked - self.session.told.keys(), "what is brought comes in the same update"


class World:
    def __init__(self):
        self.contents = {}
        self.subs = Subscriptions(self.lookup, lambda key, size: None, settle_s=0.0)
        self.sidecar = Sidecar(self.subs)

    def lookup(self, key, pod):
        return self.contents.get(key, AddressAnswer() if key.startswith("address/") else None)

    def change(self, key, content):
        if content is None:
            self.contents.pop(key, None)
        else:
            self.contents[key] = content
        self.subs.changed([key], 0.0)

    def own(self, n, name):
        self.change(ADDRESSES[n], AddressAnswer(destination=f"shop/{name}:80") if name else None)

    def put(self, name, leads, revision):
        content = destination(name, leads, revision) if revision else None
        self.change(f"destination/shop/{name}:80", content)

    def ask(self, key):
        self.sidecar.ask(key)

    def drop(self, key):
        self.sidecar.drop(key)

    def take(self):
        self.sidecar.take(self.lookup)

    def refuse(self):
        self.sidecar.take(self.lookup, refuse=True)

    def reconnect(self):
        self.sidecar.reconnect()

    def recompare(self):
        self.subs.recompare(self.sidecar.session)

    def check(self):
        for _ in range(3):
            self.take()
        held, asked = self.sidecar.held, self.sidecar.asked
        expected = {key: self.lookup(key, None) for key in asked}
        for answer in [e for e in expected.values() if isinstance(e, AddressAnswer)]:
            expected.update((key, self.lookup(key, None)) for key in brought_by(answer))
        for dest in [e for e in expected.values() if isinstance(e, Destination)]:
            expected.update((key, self.lookup(key, None)) for key in led_to(dest))
        assert held == {key: content for key, content in expected.items() if content is not None}
        used = {*self.sidecar.session.asked, *self.sidecar.session.brought, *self.sidecar.session.led}
        assert used == set(expected) == set(self.subs._sessions)


keys = st.sampled_from((*ADDRESSES, *KEYS[:2]))
steps = st.lists(
    st.one_of(
        st.tuples(st.just("own"), st.integers(0, 2), st.sampled_from((*NAMES, ""))),
        st.tuples(
            st.just("put"),
            st.sampled_from(NAMES),
            st.sets(st.sampled_from(NAMES), max_size=3).map(sorted),
            st.integers(0, 3),
        ),
        st.tuples(st.sampled_from(("ask", "ask", "drop")), keys),
        st.tuples(st.sampled_from(("take", "take", "refuse", "reconnect", "recompare"))),
    ),
    max_size=50,
)


@settings(max_examples=500, deadline=None)
@given(steps)
def test_a_sidecar_has_what_it_is_entitled_to_and_no_more(script):
    world = World()
    for name, *args in script:
        getattr(world, name)(*args)
    world.check()

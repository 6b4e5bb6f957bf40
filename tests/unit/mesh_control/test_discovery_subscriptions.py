"""What a session is told, and when; no I/O."""

import pytest

from mesh_api.discovery import AddressAnswer, Held, WorkloadConfig, encode_content
from mesh_api.sidecar import Destination, Pod, Workload
from mesh_api.traffic import Route, WeightedTarget
from mesh_control.serve import subscriptions as module
from mesh_control.serve.subscriptions import Group, PodRef, Session, Subscriptions, TooManyKeys, pack

WEB = Destination(name="web", namespace="shop", port=80, addresses=("10.96.0.1", "10.96.0.2"))
API = Destination(name="api", namespace="shop", port=80, addresses=("10.96.0.9",))
POD = Pod(name="p", namespace="shop", addresses=("10.1.0.1",), identity="spiffe://cluster.local/ns/shop/sa/p")
ONE, TWO = "address/10.96.0.1:80", "address/10.96.0.2:80"
WEB_KEY, API_KEY = "destination/shop/web:80", "destination/shop/api:80"


class World:
    def __init__(self):
        self.contents = {
            WEB_KEY: WEB,
            API_KEY: API,
            ONE: AddressAnswer(destination="shop/web:80"),
            TWO: AddressAnswer(destination="shop/web:80"),
        }
        self.large = []
        self.current = True
        self.now = 0.0
        self.woken = []
        self.subs = Subscriptions(self.lookup, lambda key, size: self.large.append(key), settle_s=1.0)

    def lookup(self, key, pod):
        if key == "workload":
            return WorkloadConfig(Workload(name=pod.name, namespace=pod.namespace), "cluster.local", "")
        return self.contents.get(key, AddressAnswer() if key.startswith("address/") else None)

    def session(self, name="a"):
        return Session(PodRef("shop", name), lambda: self.woken.append(name))

    def ask(self, session, *keys, holds=()):
        self.subs.subscribe(session, [Held(*k) if isinstance(k, tuple) else Held(k) for k in keys], holds)
        return self.collect(session)

    def change(self, contents):
        for key, content in contents.items():
            if content is None:
                del self.contents[key]
            else:
                self.contents[key] = content
        self.subs.changed(contents, self.now)

    def collect(self, session):
        groups = self.subs.collect(session, self.now, self.current)
        return {
            **{r.key: r.version for g in groups for r in g.resources},
            **{key: None for g in groups for key in g.removed},
        }


def test_an_address_brings_its_destination():
    world = World()
    a = world.session()
    told = world.ask(a, ONE)
    assert set(told) == {ONE, WEB_KEY}
    assert world.collect(a) == {}


def test_only_what_is_used_is_touched():
    world = World()
    a, b = world.session("a"), world.session("b")
    world.ask(a, ONE)
    world.ask(b, API_KEY)
    world.woken.clear()
    world.change({API_KEY: Destination(name="api", namespace="shop", port=80, addresses=())})
    assert world.woken == ["b"]
    assert world.collect(a) == {}
    assert set(world.collect(b)) == {API_KEY}


def test_equal_contents_are_not_told_again():
    world = World()
    a = world.session()
    world.ask(a, ONE)
    world.change({WEB_KEY: Destination(name="web", namespace="shop", port=80, addresses=WEB.addresses)})
    assert world.collect(a) == {}


def test_versions_that_are_held_are_not_sent():
    world = World()
    told = world.ask(world.session(), ONE, TWO)
    held = [(ONE, told[ONE]), (TWO, "another")]
    again = world.ask(world.session("b"), *held, holds=[Held(WEB_KEY, told[WEB_KEY])])
    assert set(again) == {TWO}


def test_asking_again_sends_what_is_not_held():
    """The sidecar may have dropped a content that this side believes it has."""
    world = World()
    a = world.session()
    world.ask(a, ONE)
    assert set(world.ask(a, TWO)) == {TWO, WEB_KEY}
    assert set(world.ask(a, TWO)) == {TWO, WEB_KEY}


def test_a_deleted_destination():
    world = World()
    a = world.session()
    world.ask(a, ONE)
    world.change({WEB_KEY: None, ONE: None, TWO: None})
    assert world.collect(a) == {WEB_KEY: None}
    assert world.collect(a) == {}
    world.now = 1.0
    assert set(world.collect(a)) == {ONE}, "nobody owns it: told once it has been so for a while"


def test_nobody_is_told_late_and_never_after_news():
    world = World()
    a = world.session()
    assert world.ask(a, "address/10.1.0.1:8080") == {}
    assert world.subs.due(a, world.now) == 1.0
    world.now = 0.9
    world.change({"address/10.1.0.1:8080": AddressAnswer(pod="10.1.0.1"), "pod/10.1.0.1": POD})
    assert set(world.collect(a)) == {"address/10.1.0.1:8080", "pod/10.1.0.1"}
    world.now = 5.0
    assert world.collect(a) == {}


def test_nobody_is_not_told_while_a_watch_is_down():
    world = World()
    world.current = False
    a = world.session()
    world.ask(a, "address/10.1.0.1:8080")
    world.now = 60.0
    assert world.collect(a) == {}
    assert set(world.ask(a, ONE)) == {ONE, WEB_KEY}, "what is known is told"
    world.current = True
    assert set(world.collect(a)) == {"address/10.1.0.1:8080"}


def test_an_address_of_which_nothing_can_be_said():
    world = World()
    a = world.session()
    world.ask(a, ONE)
    world.contents[ONE] = None
    world.subs.changed([ONE], 0.0)
    assert world.collect(a) == {ONE: None}, "at once: no answer is always safe"
    assert world.subs.due(a, 0.0) is None
    world.contents[ONE] = AddressAnswer()
    world.subs.changed(["address/"], 0.0)
    assert world.collect(a) == {}
    world.now = 1.0
    assert set(world.collect(a)) == {ONE}


def test_a_pod_matters_to_all_its_ports():
    world = World()
    a = world.session()
    world.ask(a, "address/10.1.0.1:1", "address/10.1.0.1:2", "address/10.1.0.2:1")
    world.woken.clear()
    world.contents["address/10.1.0.1:1"] = world.contents["address/10.1.0.1:2"] = AddressAnswer(
        pod="10.1.0.1"
    )
    world.change({"pod/10.1.0.1": POD})
    assert set(world.collect(a)) == {"address/10.1.0.1:1", "address/10.1.0.1:2", "pod/10.1.0.1"}


def test_an_address_that_moves():
    world = World()
    a = world.session()
    world.ask(a, ONE)
    world.change({ONE: AddressAnswer(destination="shop/api:80")})
    assert set(world.collect(a)) == {ONE, API_KEY}
    world.change({WEB_KEY: Destination(name="web", namespace="shop", port=80, addresses=())})
    assert world.collect(a) == {}, "the old one is not followed any more"


def test_unsubscribed_keys_leave_nothing():
    world = World()
    a, b = world.session("a"), world.session("b")
    world.ask(a, ONE, TWO, "workload", "pod/10.1.0.1", "address/10.9.9.9:1")
    world.ask(b, ONE)
    world.subs.unsubscribe(a, [ONE, "no such key"])
    world.change({WEB_KEY: Destination(name="web", namespace="shop", port=80, addresses=())})
    assert set(world.collect(a)) == {WEB_KEY}, "the other address leads to it"
    world.subs.unsubscribe(a, [TWO, "workload", "pod/10.1.0.1", "address/10.9.9.9:1"])
    assert (a.told, a.brings, a.brought, a.withheld, a.asked) == ({}, {}, {}, {}, set())
    world.subs.forget(b)
    assert len(world.subs) == 0
    assert not world.subs._by_ip


def test_keys_that_have_no_content():
    world = World()
    a = world.session()
    assert world.ask(a, "destination/shop/none:1", "pod/10.9.9.9") == {
        "destination/shop/none:1": None,
        "pod/10.9.9.9": None,
    }
    assert world.collect(a) == {}


def test_own_configuration_by_pod_and_for_everybody():
    world = World()
    a, b = world.session("a"), world.session("b")
    for session in (a, b):
        assert set(world.ask(session, "workload")) == {"workload"}
    world.woken.clear()
    world.subs.changed(["workload/shop/b"], 0.0)
    assert world.woken == ["b"]
    world.subs.changed(["workload"], 0.0)
    assert sorted(world.woken) == ["a", "b", "b"]


@pytest.mark.parametrize(
    "key",
    [
        *(
            "",
            "workload/shop/a",
            "secret/x",
            "address/10.0.0.1",
            "address/10.0.0.1:0",
            "address/10.0.0.1:70000",
        ),
        *("address/010.0.0.1:1", "address/::1:1", "address/[::01]:1", "pod/x", "pod/10.0.0.1:80"),
        *("destination/web:80", "destination/shop/web", "destination/shop/" + "w" * 500 + ":80"),
    ],
)
def test_what_is_no_key(key):
    world = World()
    with pytest.raises(ValueError, match="expected"):
        world.ask(world.session(), key)


def test_too_many_keys(monkeypatch):
    monkeypatch.setattr(module, "MAX_KEYS", 3)
    world = World()
    a = world.session()
    world.ask(a, ONE, TWO, "workload")
    world.ask(a, ONE, TWO)
    with pytest.raises(TooManyKeys):
        world.ask(a, API_KEY)


def test_a_refused_update_is_tried_in_parts():
    world = World()
    a = world.session()
    world.ask(a, ONE, API_KEY)
    world.subs.refused(a, [ONE, API_KEY])
    groups = world.subs.collect(a, 0.0, True)
    batches = list(pack(groups, a.alone, 1 << 20))
    assert [[g.key for g in batch] for batch in batches] == [[ONE], [API_KEY]]
    assert {r.key for r in groups[0].resources} == {ONE, WEB_KEY}
    world.subs.refused(a, [API_KEY])
    assert world.collect(a) == {}, "alone and still refused: it waits for a change"
    world.change({API_KEY: Destination(name="api", namespace="shop", port=80, addresses=())})
    assert set(world.collect(a)) == {API_KEY}


def test_updates_are_cut_but_groups_are_not():
    groups = [Group(str(n), (), ("x" * 400,)) for n in range(10)]
    sizes = [len(batch) for batch in pack(groups, set(), 1000)]
    assert sizes == [2] * 5
    assert [len(b) for b in pack([Group("big", (), ("x" * 5000,))], set(), 1000)] == [1]


def test_what_no_frame_can_carry(monkeypatch):
    monkeypatch.setattr(module, "MAX_BODY_BYTES", 100)
    world = World()
    world.contents[API_KEY] = Destination(name="a" * 200, namespace="shop", port=80, addresses=())
    assert world.ask(world.session(), API_KEY) == {}
    assert world.large == [API_KEY]


def test_recompare_finds_a_lost_change():
    world = World()
    a = world.session()
    world.ask(a, ONE)
    world.contents[WEB_KEY] = Destination(name="web", namespace="shop", port=80, addresses=())
    assert world.collect(a) == {}
    world.subs.recompare(a)
    assert set(world.collect(a)) == {WEB_KEY}


def leading(*names):
    """Service web, of which a route leads to these."""
    arms = tuple(WeightedTarget(destination=f"shop/{name}:80") for name in names)
    return Destination(
        name="web", namespace="shop", port=80, addresses=WEB.addresses, routes=(Route(to=arms),)
    )


def test_what_routes_lead_to_comes_with_the_destination():
    world = World()
    a = world.session()
    assert set(world.ask(a, ONE)) == {ONE, WEB_KEY}
    world.change({WEB_KEY: leading("api", "none")})
    (group,) = world.subs.collect(a, 0.0, True)
    assert ({r.key for r in group.resources}, group.removed) == (
        {WEB_KEY, API_KEY},
        ("destination/shop/none:80",),
    )
    world.change({API_KEY: Destination(name="api", namespace="shop", port=80, addresses=())})
    assert set(world.collect(a)) == {API_KEY}, "live as well"
    world.change({WEB_KEY: WEB})
    assert set(world.collect(a)) == {WEB_KEY}
    world.change({API_KEY: API})
    assert world.collect(a) == {}, "no route leads there any more"


def test_what_is_led_to_leads_no_further():
    world = World()
    world.contents |= {WEB_KEY: leading("api"), API_KEY: leading("third"), "destination/shop/third:80": API}
    a = world.session()
    assert set(world.ask(a, ONE)) == {ONE, WEB_KEY, API_KEY}
    assert "destination/shop/third:80" in world.ask(a, API_KEY), "asked for, it does"
    world.subs.unsubscribe(a, [API_KEY])
    assert not a.brings.get(API_KEY)
    assert API_KEY in a.led


def test_more_than_a_frame_holds_goes_in_the_next_update(monkeypatch):
    world = World()
    world.contents[WEB_KEY] = leading("api")
    most = len(encode_content(world.contents[WEB_KEY])) + len(encode_content(world.contents[ONE]))
    monkeypatch.setattr(module, "MAX_BODY_BYTES", most)
    a = world.session()
    assert set(world.ask(a, ONE)) == {ONE, WEB_KEY}
    assert world.subs.due(a, 0.0) == 0.0
    assert set(world.collect(a)) == {API_KEY}
    assert world.large == []

"""What updates leave behind: answers, contents, and what is dropped."""

import itertools

import msgspec
import pytest

from mesh_api.discovery import (
    AddressAnswer,
    Held,
    Resource,
    Update,
    WorkloadConfig,
    address_key,
    encode_content,
    version_of,
)
from mesh_api.keys import Family
from mesh_api.sidecar import ConfigError, Destination, Pod, TlsMode, Workload
from mesh_api.traffic import Route, WeightedTarget
from mesh_proxy.discovery.contents import Absent, Changes, Contents, key_of
from mesh_proxy.net.addr import Addr

WEB = Destination(name="web", namespace="shop", port=80, addresses=("10.96.0.1", "10.96.0.2"))
API = Destination(name="api", namespace="shop", port=80, addresses=("10.96.0.9",))
POD = Pod(name="p", namespace="shop", addresses=("10.1.0.1",), identity="spiffe://cluster.local/ns/shop/sa/p")
ONE, TWO = Addr("10.96.0.1", 80), Addr("10.96.0.2", 80)
WEB_KEY, API_KEY = "destination/shop/web:80", "destination/shop/api:80"
TO_WEB, TO_API, NOBODY = (
    AddressAnswer(destination="shop/web:80"),
    AddressAnswer(destination="shop/api:80"),
    AddressAnswer(),
)
_nonces = itertools.count(1)


def update(contents, removed=()):
    resources = []
    for key, content in contents.items():
        body = encode_content(content)
        resources.append(Resource(key, version_of(body), body))
    return Update(next(_nonces), tuple(resources), tuple(removed))


class World:
    def __init__(self, *wanted):
        self.wanted = {address_key(*w) if isinstance(w, Addr) else w for w in wanted}
        self.contents = Contents("cluster.local", lambda key: key in self.wanted)

    def apply(self, contents, removed=()):
        named = {address_key(*k) if isinstance(k, Addr) else k: c for k, c in contents.items()}
        return self.contents.apply(update(named, removed))

    def drop(self, *keys):
        keys = [address_key(*k) if isinstance(k, Addr) else k for k in keys]
        self.wanted -= set(keys)
        return self.contents.drop(keys)


def test_an_answer_with_what_it_brings():
    world = World(ONE)
    changes = world.apply({ONE: TO_WEB, WEB_KEY: WEB})
    assert world.contents.answers == {ONE: WEB}
    assert changes == Changes(destinations=(WEB,), answered=(ONE,))
    assert world.contents.holds() == (Held(WEB_KEY, world.contents.version(WEB_KEY)),)


def test_a_change_costs_what_it_touches():
    world = World(ONE, TWO, Addr("10.96.0.9", 80))
    world.apply({ONE: TO_WEB, TWO: TO_WEB, WEB_KEY: WEB, Addr("10.96.0.9", 80): TO_API, API_KEY: API})
    changed = msgspec.structs.replace(WEB, addresses=())
    changes = world.apply({WEB_KEY: changed})
    assert changes.destinations == (changed,)
    assert set(changes.answered) == {ONE, TWO}
    assert world.apply({WEB_KEY: changed}) == Changes(), "the same version again"


def test_moving_drops_what_nothing_leads_to_any_more():
    world = World(ONE, TWO)
    world.apply({ONE: TO_WEB, TWO: TO_WEB, WEB_KEY: WEB})
    assert world.apply({ONE: TO_API, API_KEY: API}).gone == ()
    changes = world.apply({TWO: NOBODY})
    assert changes.gone == (key_of(WEB),)
    assert world.contents.answers == {ONE: API, TWO: Absent.NOT_IN_MESH}
    assert world.contents.destinations() == (API,)


def test_a_removed_content_leaves_no_answer_until_the_address_has_one():
    world = World(ONE)
    world.apply({ONE: TO_WEB, WEB_KEY: WEB})
    changes = world.apply({}, [WEB_KEY])
    assert changes.gone == (key_of(WEB),)
    assert changes.again == (), "asking again would give the same"
    assert ONE not in world.contents.answers
    world.apply({ONE: NOBODY})
    assert world.contents.answers[ONE] is Absent.NOT_IN_MESH


def test_an_answer_whose_content_was_dropped_here_is_asked_for_again():
    world = World(ONE, TWO)
    world.apply({ONE: TO_WEB, WEB_KEY: WEB})
    world.drop(ONE)
    assert world.contents.destinations() == ()
    changes = world.apply({TWO: TO_WEB})
    assert changes.again == (address_key(*TWO),)
    assert TWO not in world.contents.answers


def test_dropping_leaves_nothing():
    world = World(ONE, TWO, "pod/10.1.0.1", Addr("10.1.0.1", 8080))
    to_pod = AddressAnswer(pod="10.1.0.1")
    world.apply({ONE: TO_WEB, TWO: TO_WEB, WEB_KEY: WEB, Addr("10.1.0.1", 8080): to_pod, "pod/10.1.0.1": POD})
    assert world.drop(ONE).gone == ()
    assert world.drop("pod/10.1.0.1") == Changes()
    assert world.contents.peers == {"10.1.0.1": True}, "an address still leads to it"
    world.drop(Addr("10.1.0.1", 8080))
    assert world.drop(TWO).gone == (key_of(WEB),)
    contents = world.contents
    assert (contents.answers, contents.peers, contents._versions, contents._users, contents._address) == (
        {},
        {},
        {},
        {},
        {},
    )
    assert not contents._keys


def test_what_was_unsubscribed_meanwhile_is_not_kept():
    world = World(ONE)
    assert world.apply({TWO: TO_WEB, WEB_KEY: WEB}).answered == ()
    assert len(world.contents) == 0


def test_families_and_nodes_of_one_service():
    """The name changes with the node's view, the service stays."""
    world = World(ONE)
    v4 = msgspec.structs.replace(WEB, family=Family.IPV4)
    world.apply({ONE: AddressAnswer(destination="shop/web:80"), WEB_KEY: v4})
    changes = world.apply(
        {ONE: AddressAnswer(destination="shop/web:80/ipv4/node-1"), f"{WEB_KEY}/ipv4/node-1": v4}
    )
    assert changes.gone == ()
    assert world.contents.destinations() == (v4,)


def test_callers():
    world = World("pod/10.1.0.1", "pod/10.1.0.2", "pod/10.1.0.3")
    bare = Pod(name="q", namespace="shop", addresses=("10.1.0.2",), identity="", tls=TlsMode.NONE)
    changes = world.apply({"pod/10.1.0.1": POD, "pod/10.1.0.2": bare}, ["pod/10.1.0.3"])
    assert world.contents.peers == {"10.1.0.1": True, "10.1.0.2": False, "10.1.0.3": False}
    assert set(changes.answered) == {"10.1.0.1", "10.1.0.2", "10.1.0.3"}
    world.drop("pod/10.1.0.3", "pod/10.1.0.2")
    assert world.contents.peers == {"10.1.0.1": True}


def test_own_configuration():
    world = World("workload")
    own = WorkloadConfig(Workload(name="a", namespace="shop"), "cluster.local", "")
    assert world.apply({"workload": own}).own == own
    assert world.apply({"workload": own}).own is None


@pytest.mark.parametrize(
    ("resource", "removed", "path"),
    [
        (Resource("nonsense", "v", b"\x80"), (), "nonsense"),
        (Resource(WEB_KEY, "v", b"\xc1"), (), WEB_KEY),
        (Resource(WEB_KEY, "v", encode_content(API)), (), WEB_KEY),
        (Resource(WEB_KEY, "v", b"\x81\xa4name\x07"), (), f"{WEB_KEY}.name"),
        (Resource(address_key(*TWO), "v", encode_content(AddressAnswer(pod="x"))), (), address_key(*TWO)),
        (Resource(API_KEY, "v", encode_content(API)), ("workload",), "workload"),
        (Resource(API_KEY, "v", encode_content(API)), ("destination/",), "destination/"),
    ],
)
def test_a_bad_part_refuses_the_whole(resource, removed, path):
    world = World(ONE, TWO)
    world.apply({ONE: TO_WEB, WEB_KEY: WEB})
    good = update({address_key(*ONE): TO_API, API_KEY: API}).resources
    with pytest.raises(ConfigError) as caught:
        world.contents.apply(Update(1, (*good, resource), removed))
    assert caught.value.path == path
    assert world.contents.answers == {ONE: WEB}
    assert world.contents.destinations() == (WEB,)


# -- routes that lead to other destinations ----------------------------------------------------------------


def leading(dest, *names):
    to = tuple(WeightedTarget(destination=name) for name in names)
    return msgspec.structs.replace(dest, routes=(Route(to=to),))


WEB_TO_API = leading(WEB, "shop/api:80")


def test_what_routes_lead_to_is_kept_and_found_by_name():
    world = World(ONE)
    changes = world.apply({ONE: TO_WEB, WEB_KEY: WEB_TO_API, API_KEY: API})
    assert set(map(key_of, changes.destinations)) == {key_of(WEB), key_of(API)}
    assert changes.again == ()
    assert world.contents.destination("shop/api:80") == API
    assert {held.key for held in world.contents.holds()} == {WEB_KEY, API_KEY}
    changed = msgspec.structs.replace(API, addresses=())
    assert world.apply({API_KEY: changed}).destinations == (changed,)


def test_what_routes_led_to_goes_with_the_route():
    world = World(ONE)
    world.apply({ONE: TO_WEB, WEB_KEY: WEB_TO_API, API_KEY: API})
    assert world.apply({WEB_KEY: WEB}).gone == (key_of(API),)
    assert world.contents.destination("shop/api:80") is None


def test_one_level_only():
    """The destination that a route leads to brings nothing, until it is dialled itself."""
    world = World(ONE, Addr("10.96.0.9", 80))
    third = Destination(name="third", namespace="shop", port=80, addresses=())
    to_third = leading(API, "shop/third:80")
    world.apply({ONE: TO_WEB, WEB_KEY: WEB_TO_API, API_KEY: to_third, "destination/shop/third:80": third})
    assert world.contents.destination("shop/third:80") is None
    world.apply({Addr("10.96.0.9", 80): TO_API, "destination/shop/third:80": third})
    assert world.contents.destination("shop/third:80") == third
    assert world.drop(Addr("10.96.0.9", 80)).gone == (key_of(third),)
    assert world.contents.destination("shop/api:80") == to_third, "a route still leads to it"


def test_what_two_routes_lead_to_lives_until_the_second_ends():
    world = World(ONE, Addr("10.96.0.8", 80))
    other = leading(Destination(name="other", namespace="shop", port=80, addresses=()), "shop/api:80")
    to_other = AddressAnswer(destination="shop/other:80")
    world.apply({ONE: TO_WEB, WEB_KEY: WEB_TO_API, API_KEY: API})
    world.apply({Addr("10.96.0.8", 80): to_other, "destination/shop/other:80": other})
    assert world.drop(ONE).gone == (key_of(WEB),)
    assert set(world.drop(Addr("10.96.0.8", 80)).gone) == {key_of(other), key_of(API)}
    contents = world.contents
    left = [contents._versions, contents._leads, contents._led, contents._removed, contents._contents]
    assert left == [{}, {}, {}, set(), {}]


def test_a_route_to_what_is_no_more_is_not_asked_for_again():
    world = World(ONE)
    assert world.apply({ONE: TO_WEB, WEB_KEY: WEB_TO_API}, [API_KEY]).again == ()
    assert world.contents.destination("shop/api:80") is None
    again = msgspec.structs.replace(WEB_TO_API, policy="shop/p")
    assert world.apply({WEB_KEY: again}).again == ()
    assert world.apply({API_KEY: API}).destinations == (API,)
    assert world.contents.destination("shop/api:80") == API


def test_a_route_to_what_was_dropped_here_meanwhile_is_asked_for_again():
    """The control plane did not know yet that the other address had been dropped."""
    world = World(ONE, Addr("10.96.0.9", 80))
    world.apply({ONE: TO_WEB, WEB_KEY: WEB, Addr("10.96.0.9", 80): TO_API, API_KEY: API})
    world.drop(Addr("10.96.0.9", 80))
    assert world.apply({WEB_KEY: WEB_TO_API}).again == (address_key(*ONE),)


def test_a_destination_asked_for_by_itself_leads_on():
    world = World(WEB_KEY)
    world.apply({WEB_KEY: WEB_TO_API, API_KEY: API})
    assert world.contents.destination("shop/api:80") == API
    assert set(world.drop(WEB_KEY).gone) == {key_of(WEB), key_of(API)}

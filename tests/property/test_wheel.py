"""The wheel against a model that keeps a list of deadlines."""

import gc
import weakref

from hypothesis import given, settings
from hypothesis import strategies as st

from mesh_proxy.net.wheel import NEVER, TICK_S, Timed, Wheel


class Item(Timed):
    __slots__ = ("__weakref__", "name")

    def __init__(self, name=0):
        super().__init__()
        self.name = name


times = st.floats(min_value=0, max_value=30, allow_nan=False) | st.integers(0, 3000).map(lambda n: n * TICK_S)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("set"), st.integers(0, 5), times),
        st.tuples(st.just("attribute"), st.integers(0, 5), times),
        st.tuples(st.just("clear"), st.integers(0, 5), st.none()),
        st.tuples(st.just("forget"), st.integers(0, 5), st.none()),
        st.tuples(st.just("advance"), st.integers(0, 0), times),
    ),
    max_size=80,
)


@given(steps)
@settings(max_examples=300, deadline=None)
def test_same_as_a_list_of_deadlines(script):
    wheel = Wheel()
    items = [Item(n) for n in range(6)]
    model = {}
    now = 0.0
    for what, n, value in script:
        item = items[n]
        if what == "set":
            wheel.set(item, now + value)
            model[n] = now + value
        elif what == "attribute":
            # Only later than what is queued may be written without the wheel.
            if n in model:
                item.deadline = model[n] = max(item.deadline, now + value)
        elif what == "clear":
            wheel.set(item, NEVER)
            model.pop(n, None)
        elif what == "forget":
            wheel.forget(item)
            model.pop(n, None)
        else:
            now += value
            fired = wheel.due(now)
            assert len({id(i) for i in fired}) == len(fired)
            for i in fired:
                assert model.pop(i.name) <= now  # never early
            # Never late by more than a tick, and whoever sleeps until next_due misses nothing.
            assert all(deadline > now - 1.01 * TICK_S for deadline in model.values())
        if model:
            assert wheel.next_due() <= min(model.values()) + 1.01 * TICK_S
    wheel.due(1e6)
    assert wheel.next_due() == NEVER


def test_says_when_the_earliest_changes():
    wheel = Wheel()
    a, b = Item(), Item()
    assert wheel.set(a, 5)
    assert not wheel.set(b, 6)
    assert wheel.set(b, 1)
    assert wheel.next_due() <= 1 + TICK_S
    assert wheel.due(2) == [b]
    assert wheel.due(6) == [a]


def test_moving_later_fires_once():
    wheel = Wheel()
    a = Item()
    wheel.set(a, 1)
    wheel.set(a, 3)
    wheel.set(a, 2)
    assert wheel.due(1.5) == []
    assert wheel.due(2.1) == [a]
    assert wheel.due(9) == []


def test_what_is_forgotten_is_not_kept():
    wheel = Wheel()
    refs = []
    for n in range(2000):
        item = Item()
        wheel.set(item, 7200)
        wheel.set(item, 3600 + n / 10)
        refs.append(weakref.ref(item))
        wheel.forget(item)
    del item
    gc.collect()
    assert not any(ref() for ref in refs)
    assert len(wheel._heap) < 200
    assert not wheel._buckets

import math

import pytest

from mesh_ops.registry import OVERFLOW_FAMILY, Registry


def test_a_child_is_resolved_once_and_counts():
    family = Registry().counter("x_total", "X.", ("a", "b"))
    child = family.child("1", "2")
    child.value += 3
    assert family.child("1", "2") is child
    assert family.child("2", "1") is not child
    assert child.read() == 3


@pytest.mark.parametrize("values", [(), ("1",), ("1", "2", "3")])
def test_wrong_number_of_labels(values):
    family = Registry().counter("x_total", "X.", ("a", "b"))
    with pytest.raises(ValueError, match="expected 2 label values"):
        family.child(*values)


def test_a_full_family_shares_one_child_and_says_so():
    registry = Registry(max_series=3)
    family = registry.counter("x_total", "X.", ("a", "b"))
    own = [family.child(str(i), "v") for i in range(3)]
    late = [family.child(str(i), "v") for i in range(3, 10)]
    assert len(set(map(id, own))) == 3
    assert len(set(map(id, late))) == 1
    assert family.child("other", "other") is late[0]
    assert family.child("0", "v") is own[0]
    assert len(family.children) == 4
    overflow = next(f for f in registry.collect() if f.name == OVERFLOW_FAMILY)
    assert overflow.children["x_total",].read() == 7


def test_forgetting_makes_room():
    registry = Registry(max_series=2)
    family = registry.gauge("x", "X.", ("destination", "code"))
    family.child("a", "200").set(1)
    family.child("a", "500").set(2)
    assert registry.forget(family, ("a", "404")) == 0
    assert registry.forget(family, ("a", "200")) == 1
    assert registry.forget(family, {"destination": "b"}) == 0
    assert registry.forget(family, {"destination": "a"}) == 1
    assert family.children == {}
    assert family.child("b", "200").read() == 0


def test_label_values_are_bounded():
    family = Registry().counter("x_total", "X.", ("a",))
    child = family.child("v" * 1000)
    assert family.child("v" * 1001) is child
    assert [len(key[0]) for key in family.children] == [256]
    assert family.forget(("v" * 1000,)) == 1


def test_a_second_declaration_must_agree():
    registry = Registry()
    first = registry.counter("x_total", "X.", ("a",))
    assert registry.counter("x_total", "X.", ("a",)) is first
    with pytest.raises(ValueError, match="another help text"):
        registry.counter("x_total", "Y.", ("a",))
    with pytest.raises(ValueError, match="another help text"):
        registry.counter("x_total", "X.", ("b",))
    with pytest.raises(ValueError, match="another kind"):
        registry.gauge("x_total", "X.", ("a",))


@pytest.mark.parametrize("name", ["", "1x", "x y", "x\n", "x-y"])
def test_names_are_checked(name):
    registry = Registry()
    with pytest.raises(ValueError, match="metric name"):
        registry.counter(name, "X.")
    with pytest.raises(ValueError, match="label name"):
        registry.counter("x_total", "X.", (name,))


def test_labels_are_checked():
    registry = Registry()
    with pytest.raises(ValueError, match="label name"):
        registry.counter("x_total", "X.", ("__x",))
    with pytest.raises(ValueError, match="distinct"):
        registry.counter("x_total", "X.", ("a", "a"))
    with pytest.raises(ValueError, match="belongs to the buckets"):
        registry.histogram("x", "X.", ("le",), (1,))


@pytest.mark.parametrize("buckets", [(), (2, 1), (1, 1), (1, math.inf)])
def test_buckets_are_checked(buckets):
    with pytest.raises(ValueError, match="ascending"):
        Registry().histogram("x", "X.", (), buckets)


def test_a_histogram_counts_bounds_inclusively():
    child = Registry().histogram("x_seconds", "X.", (), (0.1, 1.0)).child()
    for seconds in (0.0, 0.1, 0.10001, 1.0, 1.5, 100.0):
        child.observe(seconds)
    assert child.counts == [2, 2, 2]
    assert child.count == 6
    assert child.sum == pytest.approx(102.70001)


def test_computed_series():
    registry = Registry()
    gauge = registry.gauge("x", "X.").child()
    counter = registry.counter("x_total", "X.").child()
    gauge.set_function(lambda: 2.5)
    counter.set_function(lambda: 7)
    assert (gauge.read(), counter.read()) == (2.5, 7)
    gauge.set_function(lambda: 1 / 0)
    assert math.isnan(gauge.read())


def test_series_that_are_counted_elsewhere_are_brought_up_to_date():
    registry = Registry()
    family = registry.counter("x_total", "X.", ("v",))

    def refresh():
        family.child("late").value += 1

    registry.before_collect(refresh)
    for turn in (1, 2):
        (found,) = [each for each in registry.collect() if each is family]
        assert found.children[("late",)].value == turn

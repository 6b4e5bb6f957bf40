"""How many Events a webhook may cause that anybody can reach."""

from mesh_control.serve import hook
from mesh_control.serve.hook import EventBudget


def taken(budget: EventBudget, namespace: str, tries: int, now: float) -> int:
    return sum(budget.take(namespace, now) for _ in range(tries))


def test_a_namespace_has_a_burst_and_a_rate() -> None:
    budget = EventBudget(0.0)
    assert taken(budget, "shop", 1000, 0.0) == hook.NAMESPACE_BURST
    assert taken(budget, "shop", 1000, 4.9) == 0
    assert taken(budget, "shop", 1000, 5.0) == 1
    assert taken(budget, "shop", 1000, 1e6) == hook.NAMESPACE_BURST


def test_one_namespace_leaves_something_to_the_others() -> None:
    budget = EventBudget(0.0)
    taken(budget, "loud", 1000, 0.0)
    assert budget.take("quiet", 0.0)


def test_together_they_are_bounded() -> None:
    budget = EventBudget(0.0)
    names = [f"made-up-{n}" for n in range(5000)]
    assert sum(budget.take(name, 0.0) for name in names) == hook.BURST
    assert sum(budget.take(name, n * 0.001) for n, name in enumerate(names)) <= 5 * hook.PER_S
    kept = sum(budget.take(name, 1000.0 + n) for n, name in enumerate(names))
    assert kept >= len(names) - 1
    assert len(budget._namespaces) <= hook.MAX_NAMESPACES

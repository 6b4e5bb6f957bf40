"""What the injector's webhook needs of the control plane: values, namespaces, counters, Events."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping

import trio

from injector.decision import Namespace
from injector.review import Decided
from injector.values import Values
from injector.webhook import NamespaceUnavailable
from mesh_control.kube.client import Client
from mesh_control.kube.errors import KubeError
from mesh_control.kube.events import About, Recorder
from mesh_control.kube.resources import NAMESPACES

NAMESPACE_BURST = 20
NAMESPACE_PER_S = 0.2
BURST = 100
PER_S = 2.0
MAX_NAMESPACES = 1024


class _Bucket:
    """A token bucket; full at first."""

    __slots__ = ("_at", "_burst", "_left", "_per_s")

    def __init__(self, burst: float, per_s: float, now: float) -> None:
        self._burst = self._left = burst
        self._per_s = per_s
        self._at = now

    def level(self, now: float) -> float:
        """Tokens that are left."""
        self._left = min(self._burst, self._left + (now - self._at) * self._per_s)
        self._at = now
        return self._left

    def take(self) -> None:
        self._left -= 1


class EventBudget:
    """How many Events a webhook may cause: anybody who reaches it can make up pods and namespaces.

    Each namespace has its own budget, so that one cannot use up another's; together they have one too.
    """

    def __init__(self, now: float) -> None:
        self._all = _Bucket(BURST, PER_S, now)
        self._namespaces: OrderedDict[str, _Bucket] = OrderedDict()

    def take(self, namespace: str, now: float) -> bool:
        """Whether one more is within the budget; if so, it is spent."""
        bucket = self._namespaces.get(namespace) or _Bucket(NAMESPACE_BURST, NAMESPACE_PER_S, now)
        if bucket.level(now) < 1 or self._all.level(now) < 1:
            return False
        bucket.take()
        self._all.take()
        self._namespaces[namespace] = bucket
        self._namespaces.move_to_end(namespace)
        # The one longest unused is the fullest: with the total budget it cannot be far from full.
        if len(self._namespaces) > MAX_NAMESPACES:
            self._namespaces.popitem(last=False)
        return True


class InjectorHook:
    """Implements `injector.webhook.Hook`.

    Attributes:
        decisions: by result and reason; `failures`: requests without a decision, and Events lost.
        events_dropped: Events beyond the budget.
    """

    def __init__(
        self,
        client: Client,
        recorder: Recorder,
        values: Callable[[], Values],
        labels_of: Callable[[str], Mapping[str, str] | None],
        on_failure: Callable[[str], None],
    ) -> None:
        self.values = values
        self.decisions: Counter[tuple[str, str]] = Counter()
        self.failures = 0
        self.events_dropped = 0
        self._budget = EventBudget(trio.current_time())
        self._client = client
        self._recorder = recorder
        self._labels_of = labels_of
        self._on_failure = on_failure

    async def namespace(self, name: str) -> Namespace:
        """From the cache; asked for where the cache does not know it yet. Raises NamespaceUnavailable."""
        labels = self._labels_of(name)
        if labels is None:
            try:
                found = await self._client.get(NAMESPACES, name)
            except KubeError as exc:
                raise NamespaceUnavailable(str(exc)) from None
            labels = (found.get("metadata") or {}).get("labels") or {}
        return Namespace(name, labels)

    def decided(self, decided: Decided) -> None:
        """Count a decision."""
        self.decisions[decided.result, str(decided.reason)] += 1

    def failed(self, what: str) -> None:
        """Count and log what led to no decision."""
        self.failures += 1
        self._on_failure(what)

    async def event(self, decided: Decided) -> None:
        """Queue an Event about the pod's owner, within the budget."""
        if not self._budget.take(decided.namespace, trio.current_time()):
            self.events_dropped += 1
            return
        involved = decided.involved
        about = About(involved.api_version, involved.kind, involved.name, decided.namespace, involved.uid)
        if decided.result == "refused":
            self._recorder.record(about, "Warning", str(decided.reason), decided.message)
        else:
            self._recorder.record(about, "Normal", str(decided.reason), decided.message)

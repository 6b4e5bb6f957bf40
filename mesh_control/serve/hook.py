"""What the injector's webhook needs of the control plane: values, namespaces, counters, Events."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from injector.decision import Namespace
from injector.review import Decided
from injector.values import Values
from injector.webhook import NamespaceUnavailable
from mesh_control.kube.client import Client
from mesh_control.kube.errors import KubeError
from mesh_control.kube.events import About, Recorder
from mesh_control.kube.resources import NAMESPACES


class InjectorHook:
    """Implements `injector.webhook.Hook`.

    Attributes:
        decisions: by result and reason; `failures`: requests without a decision, and Events lost.
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
        """Queue an Event about the pod's owner."""
        involved = decided.involved
        about = About(involved.api_version, involved.kind, involved.name, decided.namespace, involved.uid)
        if decided.result == "refused":
            self._recorder.record(about, "Warning", str(decided.reason), decided.message)
        else:
            self._recorder.record(about, "Normal", str(decided.reason), decided.message)

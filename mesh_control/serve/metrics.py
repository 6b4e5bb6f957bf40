"""The control plane's metrics: their owners count, and are asked when the page is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from mesh_ops.exposition import chunks
from mesh_ops.registry import CounterFamily, GaugeFamily, Registry

Read = Callable[[], float]
ReadAll = Callable[[], Mapping[tuple[str, ...], float]]
"""Values by label values."""


class Metrics:
    """The families of one replica. Names get the prefix `triomesh_control_`."""

    def __init__(self) -> None:
        self._registry = Registry()
        self._refresh: list[Callable[[], None]] = []

    def counter(self, name: str, help: str, read: Read) -> None:
        """A total that is counted elsewhere."""
        self._registry.counter(_full(name), help).child().set_function(read)

    def gauge(self, name: str, help: str, read: Read) -> None:
        """A number that is known elsewhere."""
        self._registry.gauge(_full(name), help).child().set_function(read)

    def counters(self, name: str, help: str, labels: Sequence[str], read: ReadAll) -> None:
        """Totals with labels."""
        family = self._registry.counter(_full(name), help, labels)
        self._refresh.append(lambda: _copy(family, read()))

    def gauges(self, name: str, help: str, labels: Sequence[str], read: ReadAll) -> None:
        """Numbers with labels; those that are no longer there are left out."""
        family = self._registry.gauge(_full(name), help, labels)
        self._refresh.append(lambda: _copy(family, read()))

    def histogram(
        self,
        name: str,
        help: str,
        buckets: Sequence[float],
        read: Callable[[], tuple[Iterable[int], float]],
    ) -> None:
        """Samples by bucket (not cumulative, the last without a bound), and their sum."""
        child = self._registry.histogram(_full(name), help, (), buckets).child()

        def refresh() -> None:
            counts, child.sum = read()
            child.counts[:] = counts

        self._refresh.append(refresh)

    def page(self) -> Iterator[bytes]:
        """The text format, in pieces."""
        for refresh in self._refresh:
            refresh()
        return chunks(self._registry)


def _full(name: str) -> str:
    return f"triomesh_control_{name}"


def _fixed(value: float) -> Read:
    return lambda: value


def _copy(family: CounterFamily | GaugeFamily, values: Mapping[tuple[str, ...], float]) -> None:
    family.children.clear()
    for labels, value in values.items():
        family.child(*labels).set_function(_fixed(value))

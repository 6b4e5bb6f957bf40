"""Metric families and their series, made for a hot path that only adds integers.

Labels are resolved once: whoever owns a route or an endpoint asks a family for its child and keeps it. From
then on a sample is an attribute addition (`child.value += 1`) or one bisection (`child.observe(seconds)`).
A family never holds more than `max_series` children; what comes after them shares one child that has
`other` for every label, and `triomesh_metrics_overflow_total` says which family is full.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from typing import Generic, TypeVar

DEFAULT_MAX_SERIES = 2_000
MAX_LABEL_CHARS = 256
OTHER = "other"
OVERFLOW_FAMILY = "triomesh_metrics_overflow_total"

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*\Z")
_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*\Z")


class Kind(Enum):
    """Type of a family, as the text format spells it."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Counter:
    """One counter series. The hot path adds to `value` directly."""

    __slots__ = ("_function", "value")

    def __init__(self) -> None:
        self.value: int = 0
        self._function: Callable[[], float] | None = None

    def set_function(self, function: Callable[[], float]) -> None:
        """Read a total that is counted elsewhere whenever the series is collected."""
        self._function = function

    def read(self) -> float:
        """The value now; NaN when the function of the series fails."""
        return self.value if self._function is None else _call(self._function)


class Gauge:
    """One gauge series: a number that is set, or a function that is asked."""

    __slots__ = ("_function", "value")

    def __init__(self) -> None:
        self.value: float = 0
        self._function: Callable[[], float] | None = None

    def set(self, value: float) -> None:
        """Set the number."""
        self.value = value

    def set_function(self, function: Callable[[], float]) -> None:
        """Ask `function` for the value whenever the series is collected."""
        self._function = function

    def read(self) -> float:
        """The value now; NaN when the function of the series fails."""
        return self.value if self._function is None else _call(self._function)


class Histogram:
    """One histogram series. `counts[i]` are the samples of bucket i alone; the last bucket has no bound."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum: float = 0.0

    def observe(self, seconds: float) -> None:
        """Count one sample; a sample equal to a bound belongs to that bound's bucket."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.sum += seconds

    @property
    def count(self) -> int:
        """Number of samples."""
        return sum(self.counts)


def _call(function: Callable[[], float]) -> float:
    # One broken gauge must not take the whole page with it.
    try:
        return function()
    except Exception:
        return float("nan")


Child = TypeVar("Child", Counter, Gauge, Histogram)


class Family(Generic[Child]):
    """All series of one name."""

    __slots__ = ("_make", "_overflow", "children", "help", "kind", "labels", "max_series", "name")

    def __init__(
        self,
        name: str,
        help: str,
        kind: Kind,
        labels: tuple[str, ...],
        make: Callable[[], Child],
        max_series: int,
        overflow: Counter | None,
    ) -> None:
        self.name = name
        self.help = help
        self.kind = kind
        self.labels = labels
        self.max_series = max_series
        self.children: dict[tuple[str, ...], Child] = {}
        self._make: Callable[[], Child] = make
        self._overflow = overflow

    def child(self, *label_values: str) -> Child:
        """The series with these label values, in the order of `labels`; made when new.

        Raises ValueError when the number of values is not that of the labels.
        """
        child = self.children.get(label_values)
        return child if child is not None else self._add(label_values)

    def _add(self, label_values: tuple[str, ...]) -> Child:
        if len(label_values) != len(self.labels):
            raise ValueError(
                f"{self.name}: expected {len(self.labels)} label values, got {len(label_values)}"
            )
        key = tuple(str(value)[:MAX_LABEL_CHARS] for value in label_values)
        child = self.children.get(key)
        if child is not None:
            return child
        if len(self.children) >= self.max_series:
            if self._overflow is not None:
                self._overflow.value += 1
            key = (OTHER,) * len(self.labels)
            child = self.children.get(key)
            if child is not None:
                return child
        child = self._make()
        self.children[key] = child
        return child

    def forget(self, labels: Sequence[str] | Mapping[str, str]) -> int:
        """Drop one series by its values in order, or every series that carries the given labels."""
        if isinstance(labels, Mapping):
            wanted = [(self.labels.index(name), value[:MAX_LABEL_CHARS]) for name, value in labels.items()]
            keys = [key for key in self.children if all(key[i] == value for i, value in wanted)]
        else:
            key = tuple(value[:MAX_LABEL_CHARS] for value in labels)
            keys = [key] if key in self.children else []
        for key in keys:
            del self.children[key]
        return len(keys)


CounterFamily = Family[Counter]
GaugeFamily = Family[Gauge]
HistogramFamily = Family[Histogram]
AnyFamily = CounterFamily | GaugeFamily | HistogramFamily


class Registry:
    """The families of one process; passed to constructors, never global."""

    def __init__(self, max_series: int = DEFAULT_MAX_SERIES) -> None:
        self.max_series = max_series
        self._counters: dict[str, CounterFamily] = {}
        self._gauges: dict[str, GaugeFamily] = {}
        self._histograms: dict[str, HistogramFamily] = {}
        self._refresh: list[Callable[[], None]] = []
        # Bounded by the number of families, so it needs no limit of its own.
        self._overflow = CounterFamily(
            OVERFLOW_FAMILY,
            "Look-ups of a series that a full family answered with the series named other.",
            Kind.COUNTER,
            ("family",),
            Counter,
            1 << 30,
            None,
        )
        self._counters[OVERFLOW_FAMILY] = self._overflow

    def counter(self, name: str, help: str, labels: Sequence[str] = ()) -> CounterFamily:
        """The counter family `name`; a second declaration must be the same as the first."""
        known = self._counters.get(name)
        if known is None:
            known = CounterFamily(name, help, Kind.COUNTER, *self._declare(name, labels, Counter))
            self._counters[name] = known
        return _same(known, help, labels)

    def gauge(self, name: str, help: str, labels: Sequence[str] = ()) -> GaugeFamily:
        """The gauge family `name`; a second declaration must be the same as the first."""
        known = self._gauges.get(name)
        if known is None:
            known = GaugeFamily(name, help, Kind.GAUGE, *self._declare(name, labels, Gauge))
            self._gauges[name] = known
        return _same(known, help, labels)

    def histogram(
        self, name: str, help: str, labels: Sequence[str], buckets: Sequence[float]
    ) -> HistogramFamily:
        """The histogram family `name` with upper bounds `buckets` (ascending, finite; +Inf is implied)."""
        bounds = tuple(float(bound) for bound in buckets)
        if not bounds or list(bounds) != sorted(set(bounds)) or bounds[-1] == float("inf"):
            raise ValueError(f"{name}: expected ascending, distinct, finite buckets, got {bounds}")
        if "le" in labels:
            raise ValueError(f"{name}: the label le belongs to the buckets")
        known = self._histograms.get(name)
        if known is None:

            def make() -> Histogram:
                return Histogram(bounds)

            known = HistogramFamily(name, help, Kind.HISTOGRAM, *self._declare(name, labels, make))
            self._histograms[name] = known
        return _same(known, help, labels)

    def _declare(
        self, name: str, labels: Sequence[str], make: Callable[[], Child]
    ) -> tuple[tuple[str, ...], Callable[[], Child], int, Counter]:
        if not _NAME.match(name):
            raise ValueError(f"expected a metric name, got {name!r}")
        if name in self._counters or name in self._gauges or name in self._histograms:
            raise ValueError(f"{name}: already declared as another kind")
        for label in labels:
            if not _LABEL.match(label) or label.startswith("__"):
                raise ValueError(f"{name}: expected a label name, got {label!r}")
        if len(set(labels)) != len(labels):
            raise ValueError(f"{name}: labels must be distinct")
        return tuple(labels), make, self.max_series, self._overflow.child(name)

    def forget(self, family: AnyFamily, labels: Sequence[str] | Mapping[str, str]) -> int:
        """Drop series whose subject is gone; returns how many. A holder of a dropped child counts in vain.

        Args:
            family: the family to drop from.
            labels: all values in order, or a mapping that names some labels and drops every match.
        """
        return family.forget(labels)

    def before_collect(self, refresh: Callable[[], None]) -> None:
        """Have `refresh` bring series up to date that are counted elsewhere, before they are collected."""
        self._refresh.append(refresh)

    def collect(self) -> Iterator[AnyFamily]:
        """Every family, by name."""
        for refresh in self._refresh:
            refresh()
        families: dict[str, AnyFamily] = {**self._counters, **self._gauges, **self._histograms}
        for name in sorted(families):
            yield families[name]


def _same(family: Family[Child], help: str, labels: Sequence[str]) -> Family[Child]:
    if family.help != help or family.labels != tuple(labels):
        raise ValueError(f"{family.name}: already declared with another help text or other labels")
    return family

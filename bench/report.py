"""Medians, spreads and ratios of the runs, as a table and as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import msgspec

OURS = "ours"
DIRECT = "direct"
Better = Literal["lower", "higher"]


@dataclass(frozen=True)
class Metric:
    """One figure of a case. The key is empty for the main one, which carries the name of the case."""

    key: str
    unit: str
    better: Better = "lower"


@dataclass
class Row:
    """The runs of one metric, by who was measured. Runs at the same place belong to the same repetition."""

    case: str
    metric: Metric
    runs: dict[str, list[float]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.case}.{self.metric.key}" if self.metric.key else self.case


@dataclass(frozen=True)
class Spread:
    """Lowest, quartiles and highest of some runs."""

    low: float
    q1: float
    median: float
    q3: float
    high: float


def spread(runs: Sequence[float]) -> Spread:
    """The spread of at least one run; quartiles are interpolated between runs."""
    if len(runs) == 1:
        return Spread(runs[0], runs[0], runs[0], runs[0], runs[0])
    q1, median, q3 = statistics.quantiles(runs, n=4, method="inclusive")
    return Spread(min(runs), q1, median, q3, max(runs))


@dataclass(frozen=True)
class Ratio:
    """Ours over a peer: of the medians, and the range that it took within repetitions.

    `apart`: the runs of the two do not overlap, so that the ratio is more than noise.
    """

    of_medians: float
    low: float
    high: float
    apart: bool


def ratio(ours: Sequence[float], peer: Sequence[float]) -> Ratio | None:
    """None where a ratio means nothing: no runs, or a median that is not above zero."""
    if not ours or not peer:
        return None
    a, b = spread(ours), spread(peer)
    if a.median <= 0 or b.median <= 0:
        return None
    each = [x / y for x, y in zip(ours, peer, strict=False) if y > 0] or [a.median / b.median]
    return Ratio(a.median / b.median, min(each), max(each), a.low > b.high or a.high < b.low)


def figure(value: float) -> str:
    """A number with three significant digits, without an exponent."""
    if value == 0:
        return "0"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:,.{digits}f}"


def to_json(rows: Iterable[Row], peers: Sequence[str]) -> bytes:
    """An array with one object for each row."""
    return msgspec.json.format(msgspec.json.encode([_object(row, peers) for row in rows]), indent=2) + b"\n"


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


def _object(row: Row, peers: Sequence[str]) -> dict[str, object]:
    spreads = {who: spread(runs) for who, runs in row.runs.items() if runs}
    ours = spreads.get(OURS)
    ratios = {peer: ratio(row.runs.get(OURS, ()), row.runs.get(peer, ())) for peer in peers}
    known = {peer: r for peer, r in ratios.items() if r is not None}
    result: dict[str, object] = {
        "case": row.name,
        "unit": row.metric.unit,
        "better": row.metric.better,
        "ours": _rounded(ours.median) if ours else None,
        "peers": {peer: _rounded(spreads[peer].median) if peer in spreads else None for peer in peers},
        "ratio": {peer: _rounded(known[peer].of_medians) if peer in known else None for peer in peers},
        "spread": {
            who: {k: _rounded(getattr(s, k)) for k in ("low", "q1", "q3", "high")}
            for who, s in spreads.items()
        },
        "ratioSpread": {peer: [_rounded(r.low), _rounded(r.high)] for peer, r in known.items()},
        "outsideSpread": {peer: r.apart for peer, r in known.items()},
        "runs": {who: [_rounded(run) for run in runs] for who, runs in row.runs.items()},
    }
    if row.errors:
        result["error"] = "; ".join(f"{who}: {text}" for who, text in row.errors.items())
    return result


def _cell(row: Row, who: str) -> str:
    runs = row.runs.get(who)
    if not runs:
        return "error" if who in row.errors else "-"
    s = spread(runs)
    return f"{figure(s.median)} ({figure(s.low)}..{figure(s.high)})" if len(runs) > 1 else figure(s.median)


def _ratio_cell(row: Row, peer: str) -> str:
    r = ratio(row.runs.get(OURS, ()), row.runs.get(peer, ()))
    if r is None:
        return "-"
    shown = f"{'' if r.apart else '~'}{r.of_medians:.2f}"
    return f"{shown} ({r.low:.2f}..{r.high:.2f})" if r.low != r.high else shown


def table(rows: Sequence[Row], peers: Sequence[str]) -> str:
    """A table in text: median (lowest..highest) of everybody, then ratios, then what went wrong."""
    head = ["case", "unit", OURS, *peers, *(f"ours/{peer}" for peer in peers)]
    lines = [head]
    for row in rows:
        unit = f"{row.metric.unit} {'^' if row.metric.better == 'higher' else 'v'}"
        cells = [_cell(row, who) for who in (OURS, *peers)]
        lines.append([row.name, unit, *cells, *(_ratio_cell(row, peer) for peer in peers)])
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    text = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines]
    text.insert(1, "  ".join("-" * width for width in widths))
    text.append("median (lowest..highest) of the runs; v: lower is better, ^: higher is better")
    text.append(
        "ratio of the medians (range within repetitions); ~: the runs overlap, so no difference is claimed"
    )
    text += [f"error: {row.case}: {text}" for text, row in _distinct_errors(rows).items()]
    return "\n".join(text) + "\n"


def _distinct_errors(rows: Iterable[Row]) -> Mapping[str, Row]:
    found: dict[str, Row] = {}
    for row in rows:
        for who, text in row.errors.items():
            found.setdefault(f"{who}: {text}", row)
    return found

"""What the statistics' commands show: edges grouped, and figures worked out of them. Pure."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar

import msgspec

from mesh_api.edge_sums import Sums, quantile
from mesh_api.stats import PASSTHROUGH, Direction, EdgeKind, EdgeRow, EdgeTable

OUTSIDE = "(outside the mesh)"
K = TypeVar("K", bound=Hashable)
NONE = "-"


class Figures(msgspec.Struct, frozen=True, rename="camel"):
    """Of some edges over a window; None where there was nothing. Shares are 0 to 1, rates per second."""

    rps: float | None
    success: float | None
    """Of the requests, as the side that counted saw them."""
    actual_success: float | None
    """Of all attempts, retries included."""
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    sent_bytes_per_s: float
    """From who calls to who is called."""
    received_bytes_per_s: float
    tcp_open: int | None
    """Opaque connections now."""
    tcp_opened_per_s: float | None
    tcp_success: float | None
    """Of the opaque connections that ended."""
    mtls: float | None
    """Of the requests and opaque connections."""
    retries_per_s: float
    overflows: int
    ejections: int
    requests: int


def figures(rows: Sequence[EdgeRow]) -> Figures:
    """The figures of some edges together."""
    sums = Sums()
    for row in rows:
        sums.add(row.edge)
    tcp = any(row.edge.kind is EdgeKind.TCP for row in rows)
    secure = [(_uses(row), bool(row.edge.identity)) for row in rows]
    return Figures(
        rps=_rate(rows, "requests") if sums.requests else None,
        success=_share(sums.requests - sums.failures, sums.requests),
        actual_success=_share(sums.attempts - sums.attempt_failures, sums.attempts),
        p50_ms=_ms(sums, 0.5),
        p95_ms=_ms(sums, 0.95),
        p99_ms=_ms(sums, 0.99),
        sent_bytes_per_s=_rate(rows, "sent"),
        received_bytes_per_s=_rate(rows, "received"),
        tcp_open=sums.open if tcp else None,
        tcp_opened_per_s=_rate(rows, "opened") if tcp else None,
        tcp_success=_share(sums.closed - sums.broken, sums.closed),
        mtls=_share(sum(uses for uses, mtls in secure if mtls), sum(uses for uses, _ in secure)),
        retries_per_s=_rate(rows, "retries"),
        overflows=sums.overflows,
        ejections=sums.ejections,
        requests=sums.requests,
    )


def grouped(rows: Iterable[EdgeRow], key: Callable[[EdgeRow], K | None]) -> dict[K, list[EdgeRow]]:
    """Rows by a key, sorted by it; those without one are left out."""
    found: dict[K, list[EdgeRow]] = {}
    for row in rows:
        name = key(row)
        if name is not None:
            found.setdefault(name, []).append(row)
    return dict(sorted(found.items(), key=lambda item: str(item[0])))


# -- what an edge is from, and to ---------------------------------------------------------------------------


def service_of(row: EdgeRow) -> tuple[str, str, str] | None:
    """Namespace, name and port of the Service that was dialled; None where there was none."""
    name, _, port = row.edge.service.partition(":")
    service, _, namespace = name.rpartition(".")
    return (namespace, service, port) if service and port.isascii() and port.isdigit() else None


def ends(row: EdgeRow) -> tuple[str, str] | None:
    """NAME.NAMESPACE of who calls and who is called; None for an edge that its caller's sidecar shows.

    A caller without a sidecar has no name.
    """
    own = f"{row.workload}.{row.namespace}"
    edge = row.edge
    if edge.direction is Direction.INBOUND:
        return None if edge.identity else (OUTSIDE, own)
    if edge.workload:
        return own, f"{edge.workload}.{edge.namespace}"
    return own, OUTSIDE if edge.service in ("", PASSTHROUGH) else edge.service


def inbound_of(rows: Iterable[EdgeRow]) -> list[EdgeRow]:
    """The edges as receivers counted them."""
    return [row for row in rows if row.edge.direction is Direction.INBOUND]


def outbound_of(rows: Iterable[EdgeRow]) -> list[EdgeRow]:
    """The edges as callers counted them."""
    return [row for row in rows if row.edge.direction is Direction.OUTBOUND]


def note(found: EdgeTable) -> str:
    """What the reader should know about the answer; '' if nothing."""
    notes = []
    if found.answered < found.replicas:
        notes.append(f"only {found.answered} of {found.replicas} replicas of the control plane answered")
    if found.dropped:
        notes.append(f"{found.dropped} edges found no room and are not counted")
    return "; ".join(notes)


# -- cells --------------------------------------------------------------------------------------------------


def number(value: float | None) -> str:
    """Three digits that matter, and at most two behind the point."""
    if value is None:
        return NONE
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def percent(share: float | None) -> str:
    """A share; 100 only if it is all, and 0 only if it is none."""
    if share is None:
        return NONE
    shown = 100.0 * share
    if shown >= 99.995 and share < 1:
        return "99.99"
    if shown < 0.005 and share > 0:
        return "0.01"
    return f"{shown:.2f}"


def kilo(per_s: float) -> str:
    """Bytes a second in thousands."""
    return number(per_s / 1000) if per_s else NONE


def count(value: int | None) -> str:
    """A number of things; none of them is nothing to look at."""
    return str(value) if value else NONE


def paint(heading: str, cell: str) -> str | None:
    """Red and yellow for what wants attention."""
    if cell == NONE:
        return None
    if heading.startswith(("SUCCESS", "EFFECTIVE", "ACTUAL")):
        share = float(cell)
        return "red" if share < 95 else "yellow" if share < 99 else None
    if heading.startswith("mTLS"):
        return "yellow" if float(cell) < 100 else None
    return "yellow" if heading in ("OVERFLOWS", "EJECTIONS") else None


def short_identity(identity: str) -> str:
    """NAMESPACE/SERVICE-ACCOUNT of a SPIFFE id of ours."""
    parts = identity.split("/")
    return f"{parts[4]}/{parts[6]}" if len(parts) == 7 else identity


def _uses(row: EdgeRow) -> int:
    """How often somebody was reached."""
    edge = row.edge
    if edge.direction is Direction.OUTBOUND and not edge.workload and not edge.attempts:
        return max(edge.opened, edge.open)
    return edge.requests + max(edge.opened, edge.open)


def _rate(rows: Sequence[EdgeRow], field: str) -> float:
    rate: float = sum(getattr(row.edge, field) / row.span_s for row in rows if row.span_s > 0)
    return round(rate, 3)


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 6) if whole else None


def _ms(sums: Sums, share: float) -> float | None:
    seconds = quantile(sums.latencies, share)
    return None if seconds is None else round(seconds * 1000, 3)

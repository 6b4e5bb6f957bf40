"""What several replicas know, put together."""

from __future__ import annotations

from collections.abc import Collection

from mesh_api.edge_sums import EdgeKey, Sums, key_of
from mesh_api.stats import MAX_COUNT, Direction, EdgeRow, EdgeTable, Owner, TappedRequest, Top, WindowPart
from mesh_control.stats.steps import STEP, Steps

Workload = tuple[str, str]


def merge(parts: Collection[WindowPart], window_s: float, replicas: int) -> Steps[EdgeTable]:
    """The table of a window, in steps; `parts` are those of the replicas that answered."""
    owners: dict[Workload, list[tuple[int, Owner]]] = {}
    rows: dict[tuple[Workload, EdgeKey], Sums] = {}
    for part in parts:
        for owner in part.owners:
            owners.setdefault((owner.namespace, owner.workload), []).append((part.newest, owner))
        for i, each in enumerate(part.edges):
            key = (each.namespace, each.workload), key_of(each.edge)
            rows.setdefault(key, Sums()).add(each.edge)
            if i % STEP == STEP - 1:
                yield
    spans = {workload: _span(of) for workload, of in owners.items()}
    pods = {workload: sum(owner.pods for _, owner in of) for workload, of in owners.items()}
    found = []
    for (workload, edge), sums in sorted(rows.items(), key=_order):
        row = EdgeRow(*workload, pods.get(workload, 0), spans.get(workload, 0.0), sums.edge(edge))
        found.append(row)
        if len(found) % STEP == 0:
            yield
    return EdgeTable(window_s, replicas, len(parts), tuple(found), sum(part.dropped for part in parts))


def merge_top(parts: Collection[Top], replicas: int, most: int) -> Top:
    """The answers of several replicas as one; of the requests at most so many, the most frequent first."""
    watched = {name for part in parts for name in part.watched}
    found: dict[tuple[str, ...], TappedRequest] = {}
    for each in (each for part in parts for each in part.requests):
        if each.direction is Direction.OUTBOUND and each.destination in watched:
            continue
        key = (each.direction.value, each.source, each.destination, each.method, each.path)
        known = found.get(key)
        found[key] = each if known is None else _both(known, each)
    ordered = sorted(found.values(), key=lambda each: (-each.count, each.source, each.destination, each.path))
    return Top(
        max(part.seconds for part in parts),
        replicas,
        len(parts),
        sum(part.sidecars for part in parts),
        sum(part.failed for part in parts),
        tuple(sorted(watched)),
        tuple(ordered[:most]),
        min(sum(part.dropped for part in parts) + sum(each.count for each in ordered[most:]), MAX_COUNT),
    )


def _both(one: TappedRequest, other: TappedRequest) -> TappedRequest:
    return TappedRequest(
        one.direction,
        one.source,
        one.destination,
        one.method,
        one.path,
        min(one.count + other.count, MAX_COUNT),
        min(one.failures + other.failures, MAX_COUNT),
        min(one.best_ms, other.best_ms),
        max(one.worst_ms, other.worst_ms),
        other.last_ms,
    )


def _span(of: Collection[tuple[int, Owner]]) -> float:
    """The seconds that a workload's sums are about, whatever number of pods counted in them."""
    seconds: dict[int, float] = {}
    for newest, owner in of:
        for age, covered in enumerate(owner.seconds):
            number = newest - age
            seconds[number] = max(seconds.get(number, 0.0), covered)
    covered_s = sum(owner.covered_s for _, owner in of)
    reported_s = sum(owner.reported_s for _, owner in of)
    # The first reports began before the window, and the next ones are still to come: so much more, or less.
    return round(sum(seconds.values()) * (reported_s / covered_s if covered_s else 1.0), 3)


def _order(row: tuple[tuple[Workload, EdgeKey], Sums]) -> tuple[str, ...]:
    (namespace, name), edge = row[0]
    return namespace, name, edge.direction.value, edge.kind.value, *edge[2:]

"""Going on with the containers that a former runtime started."""

from collections.abc import Sequence
from datetime import UTC, datetime

import trio

from mesh_local.kubelet.containers import Containers, container_id, last_words
from mesh_local.kubelet.host import Host
from mesh_local.kubelet.records import Ended, Record, Waiting
from mesh_local.machinery.objects import Object, dig, uid_of


def restore(host: Host, pod: Object, records: Sequence[Record]) -> None:
    """Fill in the records of containers that have ended, and the numbers of attempts."""
    uid = uid_of(pod)
    for record in records:
        attempts = host.runtime.attempts(uid, record.name)
        if not attempts:
            continue
        latest = attempts[-1]
        present, last = _end(host, uid, record, latest), _end(host, uid, record, latest - 1)
        record.last = last
        record.backoff_s = _backoff(host, latest)
        if present is not None:
            record.attempt = latest
            record.state = present
            finished = present.finished_at or datetime.now(UTC)
            ago = (datetime.now(UTC) - finished).total_seconds()
            record.ended_mono = trio.current_time() - max(ago, 0)
            ran = (finished - present.started_at).total_seconds() if present.started_at else 0.0
            record.started_mono = record.ended_mono - ran
        elif host.runtime.load(uid, record.name, latest) is not None:
            record.attempt = latest
        else:
            # The runtime died while it started this one: the attempt is made again.
            record.attempt = latest - 1
            record.state = last or Waiting()


def _backoff(host: Host, attempt: int) -> float:
    backoff = host.options.backoff
    return min(backoff.first_s * 2 ** min(attempt - 1, 16), backoff.max_s) if attempt > 0 else 0.0


def _end(host: Host, uid: str, record: Record, attempt: int) -> Ended | None:
    if attempt < 0:
        return None
    exit_ = host.runtime.exit_of(uid, record.name, attempt)
    if exit_ is None:
        return None
    container = host.runtime.load(uid, record.name, attempt)
    named = Record(record.name, record.role, record.spec, attempt=attempt)
    return Ended(
        exit_.code,
        exit_.reason or ("Completed" if exit_.code == 0 else "Error"),
        container_id(uid, named),
        container.started_at if container else None,
        exit_.finished_at,
        exit_.message or (last_words(record.spec, container, exit_) if container else ""),
    )


def adopt(host: Host, pod: Object, records: Sequence[Record], containers: Containers) -> None:
    """Watch the containers that still run. What they were in the status, they stay."""
    uid = uid_of(pod)
    known = {
        found["name"]: found
        for key in ("initContainerStatuses", "containerStatuses")
        for found in dig(pod, "status", key, default=[])
    }
    for record in records:
        if not isinstance(record.state, Waiting) or record.attempt < 0 or record.name in containers.live:
            continue
        container = host.runtime.load(uid, record.name, record.attempt)
        if container is None:
            continue
        before = known.get(record.name, {})
        same = before.get("containerID") == container_id(uid, record)
        record.started = bool(same and before.get("started"))
        record.ready = bool(same and before.get("ready"))
        ago = (datetime.now(UTC) - container.started_at).total_seconds()
        record.started_mono = trio.current_time() - max(ago, 0)
        containers.count_as_running(containers.adopt(record, container))

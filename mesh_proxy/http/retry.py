"""Whether another attempt follows one that has failed, and after which pause."""

from __future__ import annotations

from mesh_proxy.http.exchange import AttemptFailed, Exchange
from mesh_proxy.policy.edits import field
from mesh_proxy.policy.outcome import Flag
from mesh_proxy.policy.retry import BUDGET, Phase, RetryDecision
from mesh_proxy.pool.cluster import Cluster
from mesh_proxy.pool.plan import Plan
from mesh_proxy.wire import grpc
from mesh_proxy.wire.http1 import LENGTH, NO_BODY, ResponseHead

NO_MORE = -1.0
_GONE = RetryDecision(False, "client-gone", "the client is gone")
_NO_ENDPOINT = RetryDecision(False, "no-endpoint-left", "every endpoint has been tried")
_NO_TIME = RetryDecision(False, "timeout", "the request timeout leaves no time for another attempt")
_TOO_LATE = RetryDecision(False, "retry-after", "the endpoint asked for a pause of more than 30 s")


def pause_after_failure(x: Exchange, plan: Plan, cluster: Cluster, failed: AttemptFailed) -> float:
    """The pause before the attempt that follows one without a response, or NO_MORE."""
    if failed.final:
        return NO_MORE
    decision = plan.retry.decide(failed.phase, x.head.method, _replayable(x), x.attempts)
    if not decision.retry:
        return _no(x, cluster, decision)
    if failed.stale:
        return _yes(x, plan, cluster, 0.0)
    return _yes(x, plan, cluster, plan.retry.pause_s(x.attempts, plan.rng))


def retried_response(
    x: Exchange, plan: Plan, cluster: Cluster, status: int, block: bytes
) -> AttemptFailed | None:
    """Why a response is not passed on, with the pause before the next attempt; None: it is."""
    grpc_status = field(block, b"grpc-status") or b""
    decision = plan.retry.decide_response(
        status, x.head.method, _replayable(x), x.attempts, grpc_status, x.grpc
    )
    if decision is None:
        return None
    if not decision.retry:
        _no(x, cluster, decision)
        return None
    retry_after = field(block, b"retry-after") or b""
    now_unix = x.reactor.now + x.context.wall_offset
    pause_s = plan.retry.pause_s(x.attempts, plan.rng, retry_after, now_unix)
    if pause_s < 0:
        _no(x, cluster, _TOO_LATE)
        return None
    pause_s = _yes(x, plan, cluster, pause_s)
    if pause_s < 0:
        return None
    failed = AttemptFailed(Phase.RESPONSE_STARTED, Flag.URX, f"status {status}", status)
    if grpc_status and status == 200:
        failed.detail = f"gRPC status {grpc_status.decode('latin-1')[:20]}"
        failed.status = grpc.as_http(grpc.status_in(block))
    failed.pause_s = pause_s
    return failed


def whole(x: Exchange, response: ResponseHead, have: int) -> bool:
    """Whether the connection goes on whose HTTP/1 response is not passed on: `have` is its whole body."""
    framing = response.framing
    came = (framing == NO_BODY and not have) or (framing == LENGTH and have == response.length)
    return came and response.keep_alive and x.body is None


def _replayable(x: Exchange) -> bool:
    return x.body is None or x.body.kept is not None


def _yes(x: Exchange, plan: Plan, cluster: Cluster, pause_s: float) -> float:
    """The pause, if nothing else speaks against another attempt."""
    now = x.reactor.now
    if x.gone():
        return _no(x, cluster, _GONE)
    if now + pause_s >= x.deadline:
        return _no(x, cluster, _NO_TIME)
    if not cluster.can_pick(x.tried, plan.again):
        return _no(x, cluster, _NO_ENDPOINT)
    if not cluster.service.budget.withdraw(now):
        return _no(x, cluster, BUDGET)
    x.context.stats.retries.child(cluster.service.label, "tried").value += 1
    x.counted.retried()
    return pause_s


def _no(x: Exchange, cluster: Cluster, decision: RetryDecision) -> float:
    x.retry_reason = decision.text
    x.context.stats.retries.child(cluster.service.label, decision.reason).value += 1
    return NO_MORE

"""One request at its endpoints: attempts, retries, and what is told when none succeeds.

Who is asked, and whether again, is decided by pool and policy; here it is done.
"""

from __future__ import annotations

from functools import partial

import trio

from certs.credentials import ALPN_HTTP1
from mesh_proxy.base.errors import REFUSED_STREAM, ConnectFailed, PartnerGone
from mesh_proxy.http.answer import fail
from mesh_proxy.http.converse import converse, outgoing
from mesh_proxy.http.exchange import AttemptFailed, Exchange, Outcome
from mesh_proxy.http.message import Request
from mesh_proxy.http.pause import pause
from mesh_proxy.http.retry import pause_after_failure
from mesh_proxy.http.route import inject
from mesh_proxy.http.talk import final, talk, with_body
from mesh_proxy.http2.stream import ClientStream
from mesh_proxy.net.conn import Conn
from mesh_proxy.net.wheel import NEVER
from mesh_proxy.policy.outcome import ENDPOINT_FLAGS, Flag
from mesh_proxy.policy.retry import Phase
from mesh_proxy.pool.cluster import Cluster
from mesh_proxy.pool.endpoint import Endpoint
from mesh_proxy.pool.overflow import Overflow
from mesh_proxy.pool.plan import Plan
from mesh_proxy.telemetry.stats import ArmStats
from mesh_proxy.wire.websocket import check_tunnel

_STATUS: dict[str, int] = {Flag.UT: 504, Flag.UPE: 502, Flag.SI: 408}


async def send(x: Exchange, plan: Plan) -> Outcome:
    """Send a request where its route leads: try endpoints until a response is passed on, or it is over."""
    arm = plan.arms[0] if plan.split is None else plan.arm()
    cluster = arm.fixed or arm.find()
    if cluster is None:
        return await fail(x, 503, Flag.NC, f"nothing is known (yet) of {arm.key}, where the route leads")
    x.cluster = cluster
    request_s = plan.timeout_s or cluster.request_s
    x.deadline = NEVER if request_s is None else x.started + request_s
    if x.grpc_timeout_s is not None:
        x.deadline = min(x.deadline, x.started + x.grpc_timeout_s)
    if plan.fault is not None:
        outcome = await inject(x, plan, plan.fault)
        if outcome is not None:
            return outcome
    stats = arm.stats
    limit = cluster.breaker.begin()
    if limit:
        return await _give_up(x, cluster, stats, final(Phase.NOT_CONNECTED, Flag.UO, limit))
    reactor = x.reactor
    failed: AttemptFailed | None = None
    x.tried = ()
    cluster.service.budget.deposit(x.started)
    try:
        while x.deadline > reactor.now:
            endpoint = cluster.pick(x.tried, plan.again, reactor.now)
            if endpoint is None:
                break
            x.upstream = endpoint
            x.attempts += 1
            if stats is not None:
                x.counted = stats[endpoint]
            try:
                return await _attempt(x, plan, cluster, endpoint, failed is not None and failed.stale)
            except AttemptFailed as exc:
                failed = exc.with_traceback(None)  # a frame kept here would be a cycle
            tried = (*x.tried, endpoint)
            if not failed.stale and not (failed.refused and not cluster.can_pick(tried, False)):
                x.tried = tried
            pause_s = failed.pause_s if failed.status else pause_after_failure(x, plan, cluster, failed)
            if pause_s < 0:
                break
            if pause_s:
                await pause(x, pause_s)
    finally:
        cluster.breaker.end()
    return await _give_up(x, cluster, stats, failed)


async def _give_up(
    x: Exchange, cluster: Cluster, stats: ArmStats | None, failed: AttemptFailed | None
) -> Outcome:
    """Tell the client that there will be no response."""
    if stats is not None and x.upstream is None:
        x.counted = stats.none
    if x.deadline <= x.reactor.now and (failed is None or failed.flag is not Flag.UT):
        last = f"; the last attempt: {failed.detail}" if failed is not None else ""
        return await fail(x, 504, Flag.UT, f"the request timeout is over{last}")
    if failed is None:
        return await fail(x, 503, Flag.UH, cluster.why_none())
    if failed.refused and x.stream is not None and x.conn.peer and x.view.side == "server":
        x.stream.reset(REFUSED_STREAM)  # the caller's sidecar may ask another endpoint
        return False, failed.flag, failed.detail
    if failed.flag is Flag.UO:
        x.counted.overflowed()
    detail = failed.detail + cluster.left_out()
    return await fail(x, _STATUS.get(failed.flag, 503), failed.flag, detail)


async def _attempt(
    x: Exchange, plan: Plan, cluster: Cluster, endpoint: Endpoint, fresh_only: bool
) -> Outcome:
    """One attempt at one endpoint, whose part in it is noted; its connection is given back or closed.

    Raises AttemptFailed.
    """
    down = x.down
    reactor = x.reactor
    begun = reactor.now
    deadline = x.deadline if plan.per_try_s is None else min(x.deadline, begun + plan.per_try_s)
    http2 = x.asked is None and (x.stream is not None if cluster.http2 is None else cluster.http2)
    endpoint.inflight += 1
    up: Conn | ClientStream | None = None
    request: Request | None = None
    pooled = reuse = False
    try:
        if http2:
            request = outgoing(x, deadline)
            up = await _open(x, cluster, endpoint, deadline, request)
        else:
            if x.request is not None and x.head.method == b"CONNECT":
                check_tunnel(x.request.fields)
            up = None if fresh_only else endpoint.take()
            if up is None:
                up = await _connect(x, cluster, endpoint, deadline)
            pooled = not up.fresh
        if x.gone():
            raise PartnerGone("the client reset the connection")
        down.partner = up
        if deadline != NEVER:
            reactor.set_deadline(up, deadline)
        if cluster.stream_idle_s is not None:
            x.idle = x.watch(up, cluster.stream_idle_s)
        if isinstance(up, Conn) and x.stream is None:
            if x.body is None:
                keep, flag, detail, reuse = await talk(x, plan, cluster, up)
            else:
                run = partial(talk, x, plan, cluster, up, x.body)
                keep, flag, detail, reuse = await with_body(x, x.body, run)
        else:
            request = request or outgoing(x, deadline)
            if x.body is None:
                keep, flag, detail, reuse = await converse(x, plan, cluster, up, request)
            else:
                through = partial(converse, x, plan, cluster, up, request, x.body)
                keep, flag, detail, reuse = await with_body(x, x.body, through)
        lost = flag in ENDPOINT_FLAGS and not x.switched
        _observe(x, cluster, endpoint, begun, 0 if lost else x.observed())
        return keep, flag, detail
    except AttemptFailed as exc:
        reuse = exc.reuse
        exc.stale = exc.stale or (pooled and exc.flag is Flag.UC)
        if exc.status or (exc.flag in ENDPOINT_FLAGS and not exc.stale and not exc.innocent):
            _observe(x, cluster, endpoint, begun, exc.status)
        raise
    finally:
        endpoint.inflight -= 1
        if endpoint.strikes is not None:
            cluster.outliers.release(endpoint, begun)
        if x.idle is not None:
            x.idle.stop()
            x.idle = None
        if up is not None:
            down.partner = None
            if isinstance(up, ClientStream):
                up.close()
            elif reuse:
                cluster.give(endpoint, up)
            else:
                up.abort()


def _observe(x: Exchange, cluster: Cluster, endpoint: Endpoint, begun: float, status: int) -> None:
    """Note what came of an attempt; status 0: no answer, by the endpoint's fault."""
    failed = status >= 500 or not status
    x.counted.attempt(failed)
    if cluster.observe(endpoint, begun, status, failed, x.switched or x.reactor.now):
        x.counted.ejected()


async def _connect(x: Exchange, cluster: Cluster, endpoint: Endpoint, deadline: float) -> Conn:
    within_s = min(cluster.connect_s, deadline - x.reactor.now)
    try:
        up = await cluster.connect(endpoint, ALPN_HTTP1, within_s, x.down)
    except (Overflow, ConnectFailed) as exc:
        raise _unconnected(x, exc) from exc
    x.context.stats.upstream_connections.child(cluster.service.label).value += 1
    return up


async def _open(
    x: Exchange, cluster: Cluster, endpoint: Endpoint, deadline: float, request: Request
) -> ClientStream:
    """A stream on a session of the endpoint, with the request's head on its way."""
    end = x.body is None and not request.first and not request.trailers
    stream = endpoint.sessions.open(request.fields, end, cluster.per_connection)
    if stream is not None:
        return stream
    within_s = min(cluster.connect_s, deadline - x.reactor.now)
    try:
        return await cluster.open(endpoint, request.fields, end, within_s, x.down)
    except (Overflow, ConnectFailed) as exc:
        raise _unconnected(x, exc) from exc


def _unconnected(x: Exchange, exc: Overflow | ConnectFailed) -> AttemptFailed:
    if isinstance(exc, Overflow):
        return final(Phase.NOT_CONNECTED, Flag.UO, str(exc))
    if x.deadline <= trio.current_time():
        return final(Phase.NOT_CONNECTED, Flag.UT, exc.detail)
    return AttemptFailed(Phase.NOT_CONNECTED, Flag.UF, exc.detail)

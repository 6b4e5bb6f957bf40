"""One request at its endpoints: attempts, retries, and what is told when none succeeds.

Who is asked, and whether again, is decided by pool and policy; here it is done.
"""

from __future__ import annotations

import trio

from certs.credentials import ALPN_HTTP1
from mesh_proxy.base.errors import (
    ConnectFailed,
    DeadlineExceeded,
    PartnerGone,
    PeerReset,
    TlsFailed,
    TransportError,
)
from mesh_proxy.http.answer import fail
from mesh_proxy.http.body import Body
from mesh_proxy.http.exchange import AttemptFailed, Exchange, Outcome
from mesh_proxy.http.pause import pause
from mesh_proxy.http.response import interim, relay
from mesh_proxy.http.retry import pause_after_failure, retried_response
from mesh_proxy.http.route import inject
from mesh_proxy.net.conn import Conn
from mesh_proxy.net.reactor import BROKEN
from mesh_proxy.net.wheel import NEVER
from mesh_proxy.policy.outcome import ENDPOINT_FLAGS, Flag
from mesh_proxy.policy.retry import Phase
from mesh_proxy.pool.cluster import Cluster, Overflow
from mesh_proxy.pool.endpoint import Endpoint
from mesh_proxy.pool.plan import Plan
from mesh_proxy.telemetry.stats import ArmStats
from mesh_proxy.wire.http1 import HttpError, head_end, parse_response

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
    if plan.fault is not None:
        outcome = await inject(x, plan, plan.fault)
        if outcome is not None:
            return outcome
    stats = arm.stats
    limit = cluster.breaker.begin()
    if limit:
        return await _give_up(x, cluster, stats, _final(Phase.NOT_CONNECTED, Flag.UO, limit))
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
            if not failed.stale:
                x.tried = (*x.tried, endpoint)
            pause_s = failed.pause_s if failed.status else pause_after_failure(x, plan, cluster, failed)
            if pause_s < 0:
                break
            if pause_s:
                await pause(x.down, pause_s)
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
    endpoint.inflight += 1
    up: Conn | None = None
    pooled = reuse = False
    try:
        up = None if fresh_only else endpoint.take()
        if up is None:
            up = await _connect(x, cluster, endpoint, deadline)
        pooled = not up.fresh
        if down.ended & BROKEN:
            raise PartnerGone("the client reset the connection")
        down.partner = up
        if deadline != NEVER:
            reactor.set_deadline(up, deadline)
        if cluster.stream_idle_s is not None:
            x.idle = x.watch(up, cluster.stream_idle_s)
        if x.body is None:
            keep, flag, detail, reuse = await _talk(x, plan, cluster, up)
        else:
            keep, flag, detail, reuse = await _talk_with_body(x, plan, cluster, up, x.body)
        _observe(x, cluster, endpoint, begun, 0 if flag in ENDPOINT_FLAGS else x.status)
        return keep, flag, detail
    except AttemptFailed as exc:
        reuse = exc.reuse
        exc.stale = pooled and exc.flag is Flag.UC
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
            if reuse:
                cluster.give(endpoint, up)
            else:
                up.abort()


def _observe(x: Exchange, cluster: Cluster, endpoint: Endpoint, begun: float, status: int) -> None:
    """Note what came of an attempt; status 0: no answer, by the endpoint's fault."""
    failed = status >= 500 or not status
    x.counted.attempt(failed)
    if cluster.observe(endpoint, begun, status, failed, x.reactor.now):
        x.counted.ejected()


def _final(phase: Phase, flag: str, detail: str) -> AttemptFailed:
    """A failure after which there is no time for another attempt, or no sense in it."""
    failed = AttemptFailed(phase, flag, detail)
    failed.final = True
    return failed


async def _connect(x: Exchange, cluster: Cluster, endpoint: Endpoint, deadline: float) -> Conn:
    within_s = min(cluster.connect_s, deadline - x.reactor.now)
    try:
        up = await cluster.connect(endpoint, ALPN_HTTP1, within_s, x.down)
    except Overflow as exc:
        raise _final(Phase.NOT_CONNECTED, Flag.UO, str(exc)) from None
    except ConnectFailed as exc:
        if x.deadline <= trio.current_time():
            raise _final(Phase.NOT_CONNECTED, Flag.UT, exc.detail) from exc
        raise AttemptFailed(Phase.NOT_CONNECTED, Flag.UF, exc.detail) from exc
    x.context.stats.upstream_connections.child(cluster.service.label).value += 1
    return up


async def _talk_with_body(
    x: Exchange, plan: Plan, cluster: Cluster, up: Conn, body: Body
) -> tuple[bool, str, str, bool]:
    """The same while the request's body is still arriving."""
    async with trio.open_nursery() as nursery:
        failure: Exception | None = None
        try:
            keep, flag, detail, reuse = await _talk(x, plan, cluster, up, body, nursery)
        except (AttemptFailed, TransportError) as exc:
            failure = exc
        nursery.cancel_scope.cancel()
    if body.bad is not None and x.status == 0:
        raise body.bad
    if failure is not None:
        raise failure
    if not body.sent:
        # The response overtook the body, so the endpoint may still take what comes for a part of it.
        reuse = False
        keep = keep and body.done
    return keep, flag, detail, reuse


async def _talk(
    x: Exchange,
    plan: Plan,
    cluster: Cluster,
    up: Conn,
    body: Body | None = None,
    nursery: trio.Nursery | None = None,
) -> tuple[bool, str, str, bool]:
    """One request and its response on `up`; (keep downstream, flag, detail, reuse upstream)."""
    limits = x.context.limits
    before = up.sent
    buf = b""
    interims = False
    try:
        await up.write(x.message)
        if body is not None and nursery is not None:
            nursery.start_soon(body.send, up, x.idle)
        while True:
            buf = await up.read()
            if not buf:
                raise PeerReset("the endpoint closed the connection before it responded")
            end = head_end(buf, 0, limits)
            while end < 0:
                data = await up.read()
                if not data:
                    raise PeerReset("the endpoint closed the connection within the response head")
                start = max(0, len(buf) - 3)
                buf += data
                end = head_end(buf, start, limits)
            response = parse_response(buf[:end], x.head.method, limits)
            if response.status >= 200:
                break
            interims = True
            await interim(x, response, buf[end:], up)
    except PartnerGone:
        raise
    except DeadlineExceeded:
        raise _timed_out(x, plan, up, interims or bool(buf)) from None
    except HttpError as exc:
        raise AttemptFailed(Phase.RESPONSE_STARTED, Flag.UPE, f"malformed response: {exc}") from exc
    except TransportError as exc:
        raise AttemptFailed(_phase(up, before, interims or bool(buf), exc), Flag.UC, exc.detail) from exc
    if plan.per_try_s is not None:
        x.reactor.set_deadline(up, x.deadline)
    if x.idle is not None:
        x.idle.touch()
    if plan.retry.by_response and not interims:
        retried = retried_response(x, plan, cluster, response, len(buf) - end)
        if retried is not None:
            raise retried
    return await relay(x, plan, response, buf, end, up)


def _timed_out(x: Exchange, plan: Plan, up: Conn, responded: bool) -> AttemptFailed:
    """Why no response head came in time, and whose fault it is."""
    phase = Phase.RESPONSE_STARTED if responded else Phase.SENT_NO_RESPONSE
    body = x.body
    # A client that expects 100 (Continue) does nothing before the endpoint has said so.
    wait = x.head.expect_continue and body is not None and not body.size and not responded
    client_late = body is not None and not body.done and not wait and not up.sending
    failed = _late(x, plan, phase, client_late)
    if client_late:
        failed.final = failed.innocent = True  # it would be late for any other endpoint too
    return failed


def _late(x: Exchange, plan: Plan, phase: Phase, client_late: bool) -> AttemptFailed:
    if x.idle is not None and x.idle.fired:
        if client_late:
            return _final(phase, Flag.SI, f"the client sent no byte of its request for {x.idle.idle_s:g} s")
        return AttemptFailed(phase, Flag.UT, f"no response for {x.idle.idle_s:g} s (stream idle timeout)")
    if x.deadline <= x.reactor.now or plan.per_try_s is None:
        return _final(phase, Flag.UT, "no response within the request timeout")
    return AttemptFailed(phase, Flag.UT, f"no response within {plan.per_try_s:g} s (per-try timeout)")


_REFUSALS = frozenset(
    (
        "tlsv1 alert unknown ca",
        "sslv3 alert bad certificate",
        "sslv3 alert certificate expired",
        "sslv3 alert certificate revoked",
        "sslv3 alert certificate unknown",
        "sslv3 alert unsupported certificate",
        "tlsv13 alert certificate required",
        "tlsv1 alert access denied",
    )
)


def _phase(up: Conn, sent_before: int, responded: bool, exc: TransportError) -> Phase:
    """How far a failed attempt had come (what may have been processed)."""
    if responded:
        return Phase.RESPONSE_STARTED
    if up.fresh and isinstance(exc, TlsFailed) and exc.detail in _REFUSALS:
        # TLS 1.3: the peer's refusal of our certificate comes as the first thing after the handshake.
        return Phase.NOT_CONNECTED
    if up.sent == sent_before:
        return Phase.NOTHING_SENT
    return Phase.SENT_NO_RESPONSE

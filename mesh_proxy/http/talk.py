"""One request and its response between two HTTP/1 connections, which takes no detour."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from mesh_proxy.base.errors import (
    DeadlineExceeded,
    PartnerGone,
    PeerReset,
    TlsFailed,
    TransportError,
)
from mesh_proxy.http.body import Arriving
from mesh_proxy.http.exchange import AttemptFailed, Exchange
from mesh_proxy.http.http1_call import read_head
from mesh_proxy.http.response import interim, relay
from mesh_proxy.http.retry import retried_response, whole
from mesh_proxy.http.upgrade import tunnel
from mesh_proxy.net.conn import Conn
from mesh_proxy.policy.outcome import Flag
from mesh_proxy.policy.retry import Phase
from mesh_proxy.pool.cluster import Cluster
from mesh_proxy.pool.plan import Plan
from mesh_proxy.wire.http1 import HttpError, head_end, parse_response

Talked = tuple[bool, str, str, bool]
"""Whether the client's connection can carry another request, flag, detail, whether the endpoint's can."""


async def with_body(x: Exchange, body: Arriving, run: Callable[[trio.Nursery], Awaitable[Talked]]) -> Talked:
    """The same while the request's body is still arriving; `run` has a task of the nursery send it."""
    async with trio.open_nursery() as nursery:
        failure: Exception | None = None
        try:
            keep, flag, detail, reuse = await run(nursery)
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


async def talk(
    x: Exchange,
    plan: Plan,
    cluster: Cluster,
    up: Conn,
    body: Arriving | None = None,
    nursery: trio.Nursery | None = None,
) -> Talked:
    """One request and its response on `up`; where its body is still arriving, by `with_body`."""
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
            if end < 0:
                buf, end = await read_head(up, buf, limits)
            response = parse_response(buf[:end], x.head.method, limits)
            if response.status >= 200 or (response.status == 101 and x.asked is not None):
                break
            interims = True
            await interim(x, response, buf[end:], up)
        if x.asked is not None and x.asked.granted(response):
            return await tunnel(x, plan, cluster, response, buf[end:], up)
    except PartnerGone:
        raise
    except DeadlineExceeded:
        raise timed_out(x, plan, up.sending, interims or bool(buf)) from None
    except HttpError as exc:
        raise AttemptFailed(Phase.RESPONSE_STARTED, Flag.UPE, f"malformed response: {exc}") from exc
    except TransportError as exc:
        raise AttemptFailed(_phase(up, before, interims or bool(buf), exc), Flag.UC, exc.detail) from exc
    if plan.per_try_s is not None:
        x.reactor.set_deadline(up, x.deadline)
    if x.idle is not None:
        x.idle.touch()
    if plan.retry.by_response and not interims:
        retried = retried_response(x, plan, cluster, response.status, response.block)
        if retried is not None:
            retried.reuse = whole(x, response, len(buf) - end)
            raise retried
    return await relay(x, plan, response, buf, end, up)


def final(phase: Phase, flag: str, detail: str) -> AttemptFailed:
    """A failure after which there is no time for another attempt, or no sense in it."""
    failed = AttemptFailed(phase, flag, detail)
    failed.final = True
    return failed


def timed_out(x: Exchange, plan: Plan, sending: bool, responded: bool) -> AttemptFailed:
    """Why no response head came in time, and whose fault it is; `sending`: the endpoint takes no more."""
    phase = Phase.RESPONSE_STARTED if responded else Phase.SENT_NO_RESPONSE
    body = x.body
    # A client that expects 100 (Continue) does nothing before the endpoint has said so.
    wait = x.head.expect_continue and body is not None and not body.size and not responded
    client_late = body is not None and not body.done and not wait and not sending
    failed = _late(x, plan, phase, client_late)
    if client_late:
        failed.final = failed.innocent = True  # it would be late for any other endpoint too
    return failed


def _late(x: Exchange, plan: Plan, phase: Phase, client_late: bool) -> AttemptFailed:
    if x.idle is not None and x.idle.fired:
        if client_late:
            return final(phase, Flag.SI, f"the client sent no byte of its request for {x.idle.idle_s:g} s")
        return AttemptFailed(phase, Flag.UT, f"no response for {x.idle.idle_s:g} s (stream idle timeout)")
    if x.deadline <= x.reactor.now or plan.per_try_s is None:
        return final(phase, Flag.UT, "no response within the request timeout")
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


def refused_certificate(exc: TransportError) -> bool:
    """Whether the peer of a new connection does not take our certificate.

    In TLS 1.3 that comes as the first thing after the handshake.
    """
    return isinstance(exc, TlsFailed) and exc.detail in _REFUSALS


def _phase(up: Conn, sent_before: int, responded: bool, exc: TransportError) -> Phase:
    """How far a failed attempt had come (what may have been processed)."""
    if responded:
        return Phase.RESPONSE_STARTED
    if up.fresh and refused_certificate(exc):
        return Phase.NOT_CONNECTED
    if up.sent == sent_before:
        return Phase.NOTHING_SENT
    return Phase.SENT_NO_RESPONSE

"""What a route does with a request before, or instead of, asking an endpoint."""

from __future__ import annotations

from mesh_proxy.http.answer import answer, error_field, fail
from mesh_proxy.http.exchange import Exchange, Outcome
from mesh_proxy.http.pause import pause
from mesh_proxy.net.wheel import NEVER
from mesh_proxy.policy.answers import GRPC, Answer, for_grpc
from mesh_proxy.policy.fault import Fault
from mesh_proxy.policy.outcome import Flag
from mesh_proxy.pool.plan import Plan
from mesh_proxy.pool.service import Service


async def no_route(x: Exchange, service: Service) -> Outcome:
    """Answer a request that no route matches."""
    x.rule = service.rule
    x.request_id = x.head.request_id or x.context.next_request_id()
    detail = f"no route of {service.label} matches {x.head.method.decode()} {x.head.target.decode()[:200]}"
    return await fail(x, 404, Flag.NR, detail)


async def answer_by_route(x: Exchange, plan: Plan) -> Outcome:
    """Redirect, or answer as the route says."""
    x.deadline = NEVER if plan.timeout_s is None else x.started + plan.timeout_s
    if plan.fault is not None:
        outcome = await inject(x, plan, plan.fault)
        if outcome is not None:
            return outcome
    given = plan.answer(x.head.target, x.head.host)
    return await answer(x, given, plan.response_edits), "", ""


async def inject(x: Exchange, plan: Plan, fault: Fault) -> Outcome | None:
    """Delay a request, then abort it, as chance has it; None if it goes on. The request's deadline holds."""
    delay_s = fault.delay_s(plan.rng)
    if delay_s:
        await pause(x, min(delay_s, x.deadline - x.reactor.now))
    given = fault.abort(plan.rng)
    if given is None or x.deadline <= x.reactor.now:
        return None
    detail = "a fault was injected by policy"
    fields = given.fields + error_field(x, Flag.FI, detail)
    given = Answer(given.status, fields, given.content_type, given.text)
    if x.grpc and given.content_type != GRPC:
        given = for_grpc(given, Flag.FI, f"FI: {detail}")
    return await answer(x, given), Flag.FI, detail

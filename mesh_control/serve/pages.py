"""Health and metrics of the control plane: plaintext, read only."""

from __future__ import annotations

from collections.abc import Callable

from mesh_control.serve.metrics import Metrics
from mesh_ops.exposition import CONTENT_TYPE
from mesh_ops.pages import Query, Response, Route, Routes, text


def routes(not_ready: Callable[[], list[str]], metrics: Metrics) -> Routes:
    """The pages by path.

    Args:
        not_ready: why this replica is not ready; empty when it is.
        metrics: what `/metrics` shows.
    """

    def live(_query: Query, _body: bytes) -> Response:
        return text(200, "ok")

    def ready(_query: Query, _body: bytes) -> Response:
        reasons = not_ready()
        return text(503, "\n".join(reasons)) if reasons else text(200, "ok")

    def show(_query: Query, _body: bytes) -> Response:
        return Response(200, CONTENT_TYPE, metrics.page())

    return {
        "/healthz/live": (Route("GET", live),),
        "/healthz/ready": (Route("GET", ready),),
        "/metrics": (Route("GET", show),),
    }

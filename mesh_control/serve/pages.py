"""Health and metrics of the control plane: plaintext, read only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from mesh_proxy.admin.server import TEXT, Query, Response, Route, Routes

METRICS = "text/plain; version=0.0.4; charset=utf-8"
Sample = tuple[str, Mapping[str, str], float]
"""Metric name, labels and value."""


def routes(not_ready: Callable[[], list[str]], samples: Callable[[], Iterable[Sample]]) -> Routes:
    """The pages by path.

    Args:
        not_ready: why this replica is not ready; empty when it is.
        samples: the metrics of now.
    """

    def live(_query: Query, _body: bytes) -> Response:
        return Response(200, TEXT, b"ok\n")

    def ready(_query: Query, _body: bytes) -> Response:
        reasons = not_ready()
        if reasons:
            return Response(503, TEXT, ("\n".join(reasons) + "\n").encode())
        return Response(200, TEXT, b"ok\n")

    def metrics(_query: Query, _body: bytes) -> Response:
        return Response(200, METRICS, "".join(_line(*sample) for sample in samples()).encode())

    return {
        "/healthz/live": (Route("GET", live),),
        "/healthz/ready": (Route("GET", ready),),
        "/metrics": (Route("GET", metrics),),
    }


def _line(name: str, labels: Mapping[str, str], value: float) -> str:
    shown = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
    return f"{name}{{{shown}}} {value:g}\n" if shown else f"{name} {value:g}\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

"""A real Prometheus reads a sidecar and a control plane, and answers the queries of docs/stats.md."""

import itertools
import re
from pathlib import Path

import trio

from manifests.values import Values
from mesh_ops.registry import Registry
from mesh_proxy.telemetry.stats import ProxyStats
from tests.integration.http_peers import answering, mesh, ok
from tests.support.control_api import ControlApi, run_api
from tests.support.control_app import prepare, replica
from tests.support.mesh import identity
from tests.support.prometheus import prometheus

DOCS = (Path(__file__).parents[2] / "docs" / "stats.md").read_text()
QUERIES = re.findall(r"```promql\n(.*?)```", DOCS, re.DOTALL)
SERVICE = "server.shop:80"


def test_the_queries_of_the_docs(tmp_path: Path) -> None:
    async def main(api: ControlApi) -> None:
        await prepare(api, Values())
        answers = itertools.cycle([b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n", *[ok()] * 4])
        async with replica(api, tmp_path) as control, mesh(answering(lambda _: next(answers))) as m:
            targets = {
                "client": m.client.app.ports["metrics"],
                "server": m.server.app.ports["metrics"],
                "control": control.ports[15014],
            }
            async with prometheus(tmp_path, targets) as server, trio.open_nursery() as nursery:
                client = await m.connect()

                async def load() -> None:
                    while True:
                        await client.get()
                        await trio.sleep(0.01)

                nursery.start_soon(load)
                found: dict[str, dict[tuple[str, ...], float]] = {}
                with trio.move_on_after(30):
                    while not all(good(text, found.get(text)) for text in QUERIES):
                        await trio.sleep(0.2)
                        found = {text: await server.query(text) for text in QUERIES}
                assert [text for text in QUERIES if not good(text, found.get(text))] == [], found
                nursery.cancel_scope.cancel()
                up = await server.query("up")
                assert list(up.values()) == [1.0, 1.0, 1.0]
            m.close_clients()
            _, page = await control.page("/metrics")
            control_metrics = set(re.findall("^# TYPE triomesh_control_([a-z_]+) ", page, re.MULTILINE))
            assert control_metrics - set(re.findall("`([a-z_]+)`", DOCS)) == set()

    run_api(tmp_path, main, 90)


def good(text: str, found: dict[tuple[str, ...], float] | None) -> bool:
    """Whether an answer is what the traffic must give."""
    if not found:
        return False
    (value,) = found.values() if len(found) == 1 else (float("nan"),)
    if "sidecars_connected" in text:
        return value == 0
    if "source" in text:
        return set(found) == {("server.shop", identity("client"))} and value > 0
    if 'mtls="true"' in text:
        return value == 1
    if "histogram_quantile" in text:
        return 0 < found.get((SERVICE,), 0) < 5
    return 0.5 < found.get((SERVICE,), 0) < 1


def test_the_docs_name_every_metric_of_a_sidecar() -> None:
    registry = Registry()
    ProxyStats(registry)
    names = {family.name for family in registry.collect()}
    assert names == set(re.findall(r"`(triomesh_[a-z_]+)`", DOCS)) - {"triomesh_control_"}

import json

import pytest
import trio

from mesh_api.sidecar import Snapshot, Workload
from mesh_ops.listeners import open_listeners
from mesh_ops.pages import LOCAL_HOSTS, serve
from mesh_ops.registry import Registry
from mesh_proxy.admin.routes import CredentialInfo, admin_routes, health_routes, metrics_routes


class State:
    def __init__(self):
        self.registry = Registry()
        self.registry.counter("x_total", "X.").child().value += 1
        self.reasons = []
        self.level = "info"
        self.calls = []
        self.current = Snapshot(workload=Workload(name="web", namespace="shop", service_account="web"))
        self.certificate = CredentialInfo("spiffe://cluster.local/ns/shop/sa/web", "2030-01-01T00:00:00Z")

    def not_ready(self):
        return self.reasons

    def snapshot(self):
        return self.current

    def discovery(self):
        return {"connected_to": "10.0.0.2:15010"}

    def credentials(self):
        return self.certificate

    def pools(self):
        return [{"endpoint": "10.0.0.1:80", "idle": 1}]

    def server_info(self):
        return {"version": "0.1.0", "uptime_s": 1.5}

    def log_level(self):
        return self.level

    def set_log_level(self, level):
        if level not in ("debug", "info"):
            raise ValueError("expected one of debug, info")
        self.level = level

    def drain(self):
        self.calls.append("drain")

    def quit(self):
        self.calls.append("quit")


def talk(routes, *requests):
    """Each `METHOD target` sent to a server of these routes; pairs of status and body."""

    async def main():
        listeners = open_listeners(0, loopback=True)
        port = listeners[0].socket.getsockname()[1]
        answers = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: serve(listeners, routes, hosts=LOCAL_HOSTS))
            for request in requests:
                async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                    await stream.send_all(f"{request} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
                    data = b""
                    async for piece in stream:
                        data += piece
                head, _, body = data.partition(b"\r\n\r\n")
                answers.append((int(head.split()[1]), body.decode()))
                if answers[-1][0] == 405:
                    assert b"\r\nAllow: " in head
            nursery.cancel_scope.cancel()
        return answers

    return trio.run(main)


@pytest.mark.parametrize("routes", [admin_routes, health_routes])
def test_health(routes):
    state = State()
    assert talk(routes(state), "GET /healthz/live", "GET /healthz/ready") == [
        (200, "live\n"),
        (200, "ready\n"),
    ]
    state.reasons = ["no configuration yet", "no certificate yet"]
    assert talk(routes(state), "GET /healthz/ready", "GET /healthz/live") == [
        (503, "no configuration yet\nno certificate yet\n"),
        (200, "live\n"),
    ]


@pytest.mark.parametrize("routes", [admin_routes, metrics_routes])
def test_metrics(routes):
    first, second = talk(routes(State()), "GET /metrics", "GET /stats/prometheus")
    assert first == second
    assert "x_total 1\n" in first[1]


def test_open_ports_offer_nothing_else():
    assert set(health_routes(State())) == {"/healthz/live", "/healthz/ready"}
    assert set(metrics_routes(State())) == {"/metrics", "/stats/prometheus"}


def test_config_dump():
    state = State()
    [(status, body)] = talk(admin_routes(state), "GET /config_dump")
    assert status == 200
    assert json.loads(body) == {
        "snapshot": {"workload": {"name": "web", "namespace": "shop", "serviceAccount": "web"}},
        "discovery": {"connected_to": "10.0.0.2:15010"},
        "credentials": {
            "identity": "spiffe://cluster.local/ns/shop/sa/web",
            "expires": "2030-01-01T00:00:00Z",
            "serial": "",
        },
        "pools": [{"endpoint": "10.0.0.1:80", "idle": 1}],
    }
    state.current = state.certificate = None
    [(_, body)] = talk(admin_routes(state), "GET /config_dump")
    assert json.loads(body)["snapshot"] is None


def test_server_info():
    [(_, body)] = talk(admin_routes(State()), "GET /server_info")
    assert json.loads(body) == {"version": "0.1.0", "uptime_s": 1.5}


def test_log_level():
    state = State()
    assert talk(
        admin_routes(state),
        "GET /log_level",
        "PUT /log_level?level=debug",
        "GET /log_level",
        "POST /log_level?level=info",
        "PUT /log_level?level=loud",
        "PUT /log_level",
    ) == [
        (200, "info\n"),
        (200, "debug\n"),
        (200, "debug\n"),
        (200, "info\n"),
        (400, "expected one of debug, info\n"),
        (400, "expected ?level=\n"),
    ]


def test_a_get_changes_nothing():
    state = State()
    paths = ("/log_level?level=debug", "/drain", "/quit")
    answers = talk(admin_routes(state), *(f"{method} {path}" for path in paths for method in ("GET", "HEAD")))
    assert [status for status, _ in answers] == [405] * 6
    assert (state.level, state.calls) == ("info", [])


def test_drain_and_quit():
    state = State()
    answers = talk(admin_routes(state), "POST /drain", "POST /quit")
    assert answers == [(200, "draining\n"), (200, "quitting\n")]
    assert state.calls == ["drain", "quit"]


def test_help_names_every_page():
    routes = admin_routes(State())
    (_, root), (_, page) = talk(routes, "GET /", "GET /help")
    assert root == page
    listed = {line.split()[1] for line in page.splitlines()}
    assert listed == set(routes) - {"/", "/help"}

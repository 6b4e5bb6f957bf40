"""`python -m bench.http2_engines`: what one request costs an HTTP/2 engine, a hop's two ends together."""

from __future__ import annotations

import timeit

import click

from mesh_proxy.wire.http2 import engines
from mesh_proxy.wire.http2.seam import DATA, REQUEST, RESPONSE, Engine, Http2Limits, RequestFields

_CALLS = 10_000
_BLOCK = (
    b"host: reviews.shop:8080\r\nuser-agent: curl/8.0\r\naccept: */*\r\n"
    b"x-request-id: 0123456789abcdef0123456789abcdef\r\n"
)
_ANSWER = (
    b"content-type: text/plain\r\ncontent-length: 1024\r\nserver: x\r\n"
    b"date: Tue, 01 Jan 2030 00:00:00 GMT\r\n"
)
_FIELDS = RequestFields(b"GET", b"http", b"/api/v1/items", b"", _BLOCK)
_BODY = b"x" * 1024


class _Hop:
    """A client's end and a server's end, which hand each other their bytes."""

    def __init__(self, choice: engines.EngineChoice) -> None:
        limits = Http2Limits()
        self.client: Engine = choice.make(False, limits)
        self.server: Engine = choice.make(True, limits)
        self.now = 0.0

    def request(self) -> None:
        """One GET with seven fields, answered with 1 KiB."""
        client, server = self.client, self.server
        self.now += 0.001
        client.request(_FIELDS, True)
        answered = 0
        while out := client.drain():
            for kind, stream, _, _ in server.feed(out, self.now):
                if kind == REQUEST:
                    server.respond(stream, 200, _ANSWER, False)
                    server.data(stream, _BODY, True)
            for kind, stream, value, _ in client.feed(server.drain(), self.now):
                if kind == DATA:
                    assert isinstance(value, bytes)
                    client.consumed(0, len(value))
                    client.consumed(stream, len(value))
                answered += kind in (RESPONSE, DATA)
        if not answered:
            raise click.ClickException("a request was not answered")


@click.command()
def main() -> None:
    """Print microseconds for one request over one hop, the best of five runs."""
    for name in engines.NAMES:
        try:
            choice = engines.load(name)
        except engines.EngineError as exc:
            click.echo(f"{name:10} {exc}")
            continue
        hop = _Hop(choice)
        calls = _CALLS if name == engines.NGHTTP2 else _CALLS // 10
        hop.request()
        cost = min(timeit.repeat(hop.request, repeat=5, number=calls)) / calls * 1e6
        click.echo(f"{choice.name:10} {choice.version:10} {cost:8.1f} us")


if __name__ == "__main__":
    main()

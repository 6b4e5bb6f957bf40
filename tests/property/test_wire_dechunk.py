"""The payload of chunked bodies, however they are cut."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mesh_proxy.wire.dechunk import Dechunker
from mesh_proxy.wire.http1 import ChunkScanner

chunks = st.lists(st.binary(min_size=1, max_size=300), max_size=5)
extensions = st.sampled_from([b"", b";a=b", b"; x"])
trailers = st.lists(st.sampled_from([b"x-sum: 1\r\n", b"grpc-status: 0\r\n"]), max_size=3).map(b"".join)


@given(chunks, extensions, trailers, st.lists(st.integers(1, 40), max_size=40), st.binary(max_size=20))
def test_payload_and_trailers(
    parts: list[bytes], extension: bytes, trailer: bytes, cuts: list[int], behind: bytes
) -> None:
    raw = b"".join(b"%x%s\r\n%s\r\n" % (len(part), extension, part) for part in parts)
    raw += b"0\r\n" + trailer + b"\r\n" + behind
    scanner, dechunk = ChunkScanner(), Dechunker()
    payload = b""
    at = 0
    for size in [*cuts, len(raw)]:
        if scanner.done or at >= len(raw):
            break
        piece = raw[at : at + size]
        used = scanner.feed(piece)
        payload += dechunk.feed(piece[:used])
        at += used
    assert scanner.done
    assert (payload, dechunk.trailers) == (b"".join(parts), trailer)
    assert raw[at:] == behind

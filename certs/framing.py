"""One message on a stream: a big-endian u32 length and that many bytes; the framing of `mesh_api.ca`.

Both ends use it, so it imports neither.
"""

from __future__ import annotations

import trio

from mesh_api.ca import MAX_CA_MESSAGE_BYTES


class FrameError(Exception):
    """Bytes that are no frame: too long, or the stream ended inside it."""


async def read_frame(stream: trio.abc.ReceiveStream, limit: int = MAX_CA_MESSAGE_BYTES) -> bytes:
    """The body of the next frame. Memory grows with what arrives, not with the length that is announced.

    Raises FrameError for a frame above `limit` bytes, or a stream that ends inside it. The deadline is the
    caller's.
    """
    data = bytearray()
    need = 4
    while True:
        chunk = await stream.receive_some(min(65536, need - len(data)))
        if not chunk:
            raise FrameError(f"expected {need - len(data)} more bytes, got the end of the stream")
        data += chunk
        if len(data) < need:
            continue
        if need > 4:
            return bytes(data[4:])
        need = 4 + int.from_bytes(data, "big")
        if not 4 < need <= 4 + limit:
            raise FrameError(f"expected a body of 1 to {limit} bytes, got {need - 4}")


async def write_frame(stream: trio.abc.SendStream, body: bytes, limit: int = MAX_CA_MESSAGE_BYTES) -> None:
    """Send one frame. Raises FrameError if `body` is above `limit` bytes, before anything is sent."""
    if not 1 <= len(body) <= limit:
        raise FrameError(f"expected a body of 1 to {limit} bytes, got {len(body)}")
    await stream.send_all(len(body).to_bytes(4, "big") + body)

"""The payload of a chunked body that has been checked already (RFC 9112, 7.1)."""

from __future__ import annotations

__all__ = ["Dechunker"]


class Dechunker:
    """Takes what `ChunkScanner` has accepted, in the same pieces; nothing is checked a second time."""

    __slots__ = ("_left", "_line", "trailers")

    def __init__(self) -> None:
        self._left = 0
        """Bytes of the chunk still to come, the CRLF behind it included; -1 within the trailers."""
        self._line = b""
        """Of a size or trailer line, as much as has come: the scanner bounds it."""
        self.trailers = b""
        """Trailer lines, each with its CRLF."""

    def feed(self, data: bytes) -> bytes:
        """The payload in the next bytes."""
        parts: list[bytes] = []
        at, end = 0, len(data)
        while at < end:
            left = self._left
            if left > 0:
                stop = min(end, at + left)
                payload = min(stop, at + left - 2)
                if payload > at:
                    parts.append(data[at:payload])
                self._left = left - (stop - at)
                at = stop
                continue
            newline = data.find(b"\n", at)
            if newline < 0:
                self._line += data[at:]
                break
            line, self._line = self._line + data[at : newline + 1], b""
            at = newline + 1
            if left < 0:
                if line != b"\r\n":
                    self.trailers += line
                continue
            size = int(line.partition(b";")[0], 16)
            self._left = size + 2 if size else -1
        return b"".join(parts)

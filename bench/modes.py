"""What a pair of proxies is made for."""

from __future__ import annotations

from typing import Literal

Mode = Literal["http", "http2", "grpc", "tcp"]
ALPN: dict[Mode, str] = {"http": "http/1.1", "http2": "h2", "grpc": "h2"}
"""What the peers name their protocol between the two sides; opaque TCP has no name."""

"""Which HTTP/2 engine a process uses: libnghttp2 if its module is built and it is safe, else hyper-h2."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Final

from mesh_proxy.wire.http2.seam import Engine, Http2Limits

AUTO: Final = "auto"
NGHTTP2: Final = "nghttp2"
HYPER: Final = "hyper"
NAMES: Final = (NGHTTP2, HYPER)


class EngineError(Exception):
    """An engine that cannot be used; the message says why."""


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """An engine, and why it is this one."""

    name: str
    version: str
    why: str
    make: Callable[[bool, Http2Limits], Engine]
    """Given whether this end is the server's."""

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


def load(name: str) -> EngineChoice:
    """Choose the engine `auto`, `nghttp2` or `hyper`; only now is its library imported.

    Raises:
        EngineError: it is not here, or not safe.
    """
    if name == HYPER:
        return _hyper("it was asked for")
    if name == NGHTTP2:
        return _nghttp2("it was asked for")
    if name != AUTO:
        raise EngineError(f"HTTP/2 engine: expected {AUTO}, {NGHTTP2} or {HYPER}, got {name!r}")
    try:
        return _nghttp2("it is the fastest")
    except EngineError as exc:
        return _hyper(str(exc))


def _nghttp2(why: str) -> EngineChoice:
    try:
        engine = import_module("mesh_proxy.wire.http2.nghttp2")
    except ImportError as exc:
        raise EngineError(f"the libnghttp2 engine is not built, or its library is missing: {exc}") from None
    version = engine.version()
    if weakness := engine.unsafe():
        raise EngineError(f"libnghttp2 {version} is not safe: {weakness}; expected 1.61, or one mended since")
    return EngineChoice(NGHTTP2, version, why, engine.Nghttp2Engine)


def _hyper(why: str) -> EngineChoice:
    try:
        version = import_module("h2").__version__
        engine = import_module("mesh_proxy.wire.http2.hyper")
    except ImportError as exc:
        raise EngineError(f"hyper-h2 cannot be imported: {exc}") from None
    return EngineChoice(HYPER, version, why, engine.HyperEngine)

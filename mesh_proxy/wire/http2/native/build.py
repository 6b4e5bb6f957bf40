"""How cffi makes the module `_nghttp2` of the C files here; setup.py compiles it."""

from pathlib import Path
from typing import Final

from cffi import FFI

MODULE: Final = "mesh_proxy.wire.http2.native._nghttp2"
_HERE = Path(__file__).parent
SOURCES: Final = ("engine.c", "frames.c", "head.c", "probe.c", "receive.c", "send.c", "stream.c")

ffibuilder = FFI()
ffibuilder.cdef((_HERE / "engine.h").read_text())
ffibuilder.set_source(
    MODULE,
    '#include <stdint.h>\n#include "engine.h"',
    sources=[str(_HERE / name) for name in SOURCES],
    depends=[str(_HERE / "engine.h"), str(_HERE / "internal.h")],
    include_dirs=[str(_HERE)],
    libraries=["nghttp2"],
    extra_compile_args=["-O2", "-fvisibility=hidden", "-std=gnu11"],
)

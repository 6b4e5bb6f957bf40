"""The heap of the process. For who owns the process: what is done here concerns all that runs in it."""

from __future__ import annotations

import ctypes
import gc


def settle_heap() -> None:
    """Keep all that lives now out of the garbage collector's sight, and nothing that was kept out before."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def release_heap() -> None:
    """Collect garbage, and give what the allocator holds back to the kernel where it can do that."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it
    if trim is not None:
        trim(0)

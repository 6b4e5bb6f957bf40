from __future__ import annotations

import gc
import weakref

from mesh_ops.heap import release_heap, settle_heap


class Knot:
    def __init__(self) -> None:
        self.itself = self


def test_what_was_settled_and_is_over_goes_with_the_next_settling() -> None:
    knot = Knot()
    gone = weakref.ref(knot)
    try:
        settle_heap()
        assert gc.get_freeze_count() > 0
        del knot
        release_heap()
        assert gone() is not None  # out of sight
        settle_heap()
        assert gone() is None
    finally:
        gc.unfreeze()

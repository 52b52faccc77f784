"""Count the calls of a block of code: a measure of work that is the same on a busy machine."""

import contextlib
import gc
import sys
from collections.abc import Iterator
from types import FrameType


class Calls:
    """The calls so far: of functions in Python and in C, and of resumed generators."""

    def __init__(self) -> None:
        self.count = 0

    def _add(self, _: FrameType, event: str, __: object) -> None:
        if event in {"call", "c_call"}:
            self.count += 1


@contextlib.contextmanager
def counted_calls() -> Iterator[Calls]:
    """Count the calls that this thread makes in the block.

    The garbage collector is off meanwhile: it would call finalizers of other tests' objects.
    """
    calls, before, was_enabled = Calls(), sys.getprofile(), gc.isenabled()
    gc.disable()
    sys.setprofile(calls._add)
    try:
        yield calls
    finally:
        sys.setprofile(before)
        if was_enabled:
            gc.enable()

"""The stacks of all threads, written when hardly anything works any more."""

from __future__ import annotations

import os
import sys

from svcrun._util.hints import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

__all__ = ("MAX_DEPTH", "thread_stacks", "write_to_stderr")

MAX_DEPTH = 100
"""The maximum of frames written for each stack: an endless recursion has thousands."""


def thread_stacks() -> bytes:
    """Return the stacks of all threads, in the format of :mod:`faulthandler`.

    That module needs a descriptor. Since Python 3.14 it stops at a thread that is being started or
    has just ended, and so omits the stacks of the others. This function imports nothing, opens
    nothing and takes no lock: the blocked thread may hold it.
    """
    lines: list[str] = []
    for thread, frame in sys._current_frames().items():  # noqa: SLF001 - documented
        lines.append(f"Thread 0x{thread:016x} (most recent call first):")
        lines.extend(_stack(frame))
        lines.append("")
    return "\n".join(lines).encode(errors="backslashreplace")


def _stack(frame: FrameType | None) -> Iterator[str]:
    for _ in range(MAX_DEPTH):
        if frame is None:
            return
        code = frame.f_code
        yield f'  File "{code.co_filename}", line {frame.f_lineno or 0} in {code.co_name}'
        frame = frame.f_back
    if frame is not None:
        yield "  ..."


def write_to_stderr(text: bytes) -> None:
    """Write to the descriptor: a write to ``sys.stderr`` may wait for a lock."""
    if sys.__stderr__ is None:
        return  # the process began without stderr, so a client's socket may be descriptor 2
    while text:
        text = text[os.write(2, text) :]

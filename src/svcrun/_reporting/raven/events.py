"""Describe exceptions and frames in events of raven, including those that raven omits."""

from __future__ import annotations

import linecache
from typing import TYPE_CHECKING, Any, NamedTuple

from raven.events import Exception as RavenException
from raven.utils.encoding import to_unicode
from raven.utils.stacks import get_stack_info, iter_traceback_frames

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import CodeType, FrameType

__all__ = ("EXCEPTION", "MESSAGE", "ExceptionEvent", "readable")

MESSAGE = "raven.events.Message"
EXCEPTION = f"{__name__}.ExceptionEvent"
"""The kinds of events. raven imports the class of a kind by this name."""

_MAX_EXCEPTIONS = 50  # in a chain, including the members of groups


class ExceptionEvent(RavenException):  # type: ignore[misc]  # raven has no types
    """Describe an exception in an event, with its notes and the members of groups."""

    def capture(self, exc_info: Any = None, **_: Any) -> dict[str, Any]:
        """Describe an exception, its causes and its contexts; the exception itself comes last."""
        values = [self._describe(error) for error in _related(exc_info[1])]
        values.reverse()
        return {self.name: {"values": values}}

    def _describe(self, error: BaseException) -> dict[str, Any]:
        kind = type(error)
        lines = [to_unicode(error), *map(str, getattr(error, "__notes__", ()))]
        stack = get_stack_info(
            readable(iter_traceback_frames(error.__traceback__)),
            transformer=self.transform,
            capture_locals=self.client.capture_locals,
        )
        return {
            "type": kind.__name__,
            "module": str(kind.__module__),
            "value": "\n".join(lines),
            "stacktrace": stack,
        }


def _related(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception, then the chain of its causes and contexts, and the members of groups.

    The members of a group come after the group. Each exception occurs once, even in a cycle.
    """
    queue = [error]
    seen: set[int] = set()
    while queue and len(seen) < _MAX_EXCEPTIONS:
        error = queue.pop(0)
        if id(error) in seen:
            continue
        seen.add(id(error))
        yield error
        before = error.__cause__ if error.__suppress_context__ else error.__context__
        if before is not None:
            queue.append(before)
        if isinstance(error, BaseExceptionGroup):
            queue.extend(error.exceptions)


class _Frame(NamedTuple):
    """The attributes of a frame that raven reads."""

    f_code: CodeType
    f_globals: dict[str, Any]
    f_locals: dict[str, Any]


def readable(
    frames: Iterable[tuple[FrameType, int | None]],
) -> Iterator[tuple[_Frame, int]]:
    """Yield copies of frames that raven reads fast and without errors.

    If a frame has the loader of its module, raven reads the source file again for each frame.
    Without a loader, raven reads the lines from linecache. So this function passes the loader to
    linecache, and omits it from the copy. The line number of generated code may be None, or -1 in
    early releases of Python 3.11; the copy has the first line of the function instead.
    """
    for frame, line in frames:
        code = frame.f_code
        linecache.lazycache(code.co_filename, frame.f_globals)
        name = {"__name__": frame.f_globals.get("__name__")}
        known = line if line is not None and line > 0 else code.co_firstlineno
        yield _Frame(code, name, dict(frame.f_locals)), known

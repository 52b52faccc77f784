"""Text streams below their buffers: what they are, and how to write to them at once."""

from __future__ import annotations

import os
import select
import sys
import traceback
from io import BufferedWriter, TextIOWrapper

from svcrun.hints import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from svcrun.log.sinks import Sink

__all__ = (
    "complain",
    "is_raw",
    "is_writable",
    "name_error",
    "raw_encoding",
    "renew",
    "write_descriptor",
)

_TICK = 100  # milliseconds between two looks at whether a full pipe is still worth waiting for


def complain(text: str, *, wait: bool = False, but_not_to: object = None) -> None:
    """Write to stderr if that is possible.

    :param wait: whether to wait while stderr takes no more; else the text is given up.
    :param but_not_to: a stream that is known to be stuck or broken.
    """
    stream = sys.stderr
    try:
        encoding = raw_encoding(stream)
        if encoding is not None:
            if wait or is_writable(stream.fileno()):
                write_descriptor(stream.fileno(), text.encode(encoding, "backslashreplace"))
        elif stream is not but_not_to:
            stream.write(text)
            stream.flush()
    except Exception:  # noqa: BLE001, S110 - there is nobody left to be told
        pass


def raw_encoding(stream: TextIO | None) -> str | None:
    """Tell the encoding for writing to a stream's descriptor, None if that is not the way.

    It is for the stderr that the process began with: that has no newlines to be translated, and
    next to nothing is ever written to it in another way.
    """
    if stream is None or stream is not sys.__stderr__ or type(stream) is not TextIOWrapper:
        return None
    encoding = stream.encoding
    plain = os.linesep == "\n" and "\n".encode(encoding) == b"\n"
    return encoding if plain else None


def is_raw(stream: TextIO | None) -> bool:
    """Tell whether a stream is written through its descriptor."""
    return raw_encoding(stream) is not None


def renew(stream: Any) -> TextIO | None:
    """Open the file or pipe of a stream once more; None if the stream is anything else.

    The old one is kept: to free it would write what is left in its buffer.
    """
    if type(stream) is not TextIOWrapper or type(stream.buffer) is not BufferedWriter:
        return None
    try:
        renewed = open(  # noqa: SIM115 - it is in use to the end of the process
            stream.fileno(), "w", encoding=stream.encoding, errors=stream.errors, closefd=False
        )
    except (OSError, ValueError):  # closed
        return None
    _replaced.append(stream)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is stream:
            setattr(sys, name, renewed)
    return renewed


_replaced: list[object] = []


def write_descriptor(descriptor: int, data: bytes, sink: Sink | None = None) -> None:
    """Write all of it, also when the descriptor is set not to block."""
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:
            if sink is not None and sink.abandoned:
                return
            is_writable(descriptor, _TICK)


def is_writable(descriptor: int, timeout: int = 0) -> bool:
    """Tell whether a short text can be written within so many milliseconds."""
    if not hasattr(select, "poll"):
        return True
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(timeout))


def name_error(error: BaseException) -> str:
    """Return the class of an error and its text."""
    return "".join(traceback.format_exception_only(error)).strip()

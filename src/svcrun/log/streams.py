"""Write to the file descriptors of text streams, bypassing their buffers."""

from __future__ import annotations

import os
import select
import sys
import traceback
from io import BufferedWriter, TextIOWrapper

from svcrun._util.hints import TYPE_CHECKING, Any, Protocol, TextIO

if TYPE_CHECKING:

    class Abandonable(Protocol):
        """An object that the program may stop waiting for."""

        abandoned: bool


__all__ = (
    "describe_error",
    "is_writable",
    "raw_encoding",
    "reopen",
    "write_descriptor",
    "write_to_stderr",
)

# Milliseconds between two checks whether the sink of a full pipe was abandoned.
_POLL_TIMEOUT = 100


def write_to_stderr(text: str, *, wait: bool = False, unless: object = None) -> None:
    """Write to stderr if possible; never raise.

    :param wait: whether to wait while stderr is a full pipe; otherwise the text is dropped.
    :param unless: a blocked or broken stream; nothing is written if it is stderr.
    """
    stream = sys.stderr
    try:
        encoding = raw_encoding(stream)
        if encoding is not None:
            if wait or is_writable(stream.fileno()):
                write_descriptor(stream.fileno(), text.encode(encoding, "backslashreplace"))
        elif stream is not unless:
            stream.write(text)
            stream.flush()
    except Exception:  # noqa: BLE001, S110 - stderr was the last place to report an error
        pass


def raw_encoding(stream: TextIO | None) -> str | None:
    """Return the encoding for writes to the descriptor of a stream; None if that is not safe.

    It is safe for the original stderr of the process, because other code leaves no text in its
    buffer, unless the stream translates newlines.
    """
    if stream is None or stream is not sys.__stderr__ or type(stream) is not TextIOWrapper:
        return None
    encoding = stream.encoding
    plain = os.linesep == "\n" and "\n".encode(encoding) == b"\n"
    return encoding if plain else None


def reopen(stream: Any) -> TextIO | None:
    """Reopen the file or pipe of a stream; return None for any other stream.

    The old stream stays alive, because its destructor would write its buffer. The parent process
    writes that buffer, too.
    """
    if type(stream) is not TextIOWrapper or type(stream.buffer) is not BufferedWriter:
        return None
    try:
        reopened = open(  # noqa: SIM115 - in use until the process ends
            stream.fileno(), "w", encoding=stream.encoding, errors=stream.errors, closefd=False
        )
    except (OSError, ValueError):  # closed
        return None
    _replaced.append(stream)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is stream:
            setattr(sys, name, reopened)
    return reopened


_replaced: list[object] = []


def write_descriptor(descriptor: int, data: bytes, sink: Abandonable | None = None) -> None:
    """Write all of `data`, even to a non-blocking descriptor, unless `sink` is abandoned."""
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:  # another process may have made the shared pipe non-blocking
            if sink is not None and sink.abandoned:
                return
            is_writable(descriptor, _POLL_TIMEOUT)


def is_writable(descriptor: int, timeout: int = 0) -> bool:
    """Check whether a short text can be written within `timeout` milliseconds."""
    if not hasattr(select, "poll"):
        return True
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(timeout))


def describe_error(error: BaseException) -> str:
    """Return the class of an error and its message."""
    return "".join(traceback.format_exception_only(error)).strip()

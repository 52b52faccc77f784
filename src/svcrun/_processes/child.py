"""The child's side of a spawned process: signals, and the reports to its parent.

The child writes lines of JSON to a pipe. The first one reports that it is ready, or why it is not;
the others are log records.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import warnings
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from svcrun._util.environment import overridden
from svcrun._util.raising import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from multiprocessing.connection import Connection
    from types import FrameType, TracebackType

__all__ = ("ChildPipe", "run_child")

_FIELDS: Final = ("name", "levelno", "pathname", "lineno", "funcName", "created", "threadName")
_POLL_INTERVAL: Final = 0.5  # seconds


class ChildPipe:
    """The pipe from a spawned process to its parent; pickled as the first argument.

    Pickle loads the arguments one after the other. So this is loaded, and is ready to report an
    error, before the modules of the others are imported.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def __reduce__(self) -> tuple[Callable[[Connection], ChildPipe], tuple[Connection]]:
        return _open_in_child, (self.connection,)

    def send(self, message: dict[str, Any]) -> None:
        """Send a message, unless the parent has died."""
        data = json.dumps(message).encode() + b"\n"
        view = memoryview(data)
        with suppress(OSError):
            while view:
                view = view[os.write(self.connection.fileno(), view) :]


def _open_in_child(connection: Connection) -> ChildPipe:
    # A group of its own: Ctrl-C at the terminal is for the parent alone, and the processes that
    # this one forks can be ended with it.
    with suppress(OSError):
        os.setpgid(0, 0)
    pipe = ChildPipe(connection)

    def report(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        pipe.send({"failed": one_line(error)})
        sys.__excepthook__(kind, error, trace)

    sys.excepthook = report
    return pipe


def run_child(
    pipe: ChildPipe,
    guarded: Connection,
    call: tuple[Callable[..., object], Mapping[str, Any]],
    parent: int,
    level: int,
) -> None:
    """Run a function in this process; SIGTERM raises SystemExit in it.

    :param pipe: the pipe to the parent.
    :param guarded: a pipe with a message as soon as the guard of the parent knows this process.
    :param call: the function and its keyword arguments.
    :param parent: the process id of the parent.
    :param level: the level of the root logger.
    """
    _wait_until_guarded(guarded, parent)
    sys.excepthook = sys.__excepthook__
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The parent has blocked it for the time of the imports.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT,))
    signal.signal(signal.SIGTERM, _exit_by_signal)
    # Python 3.15: multiprocessing gives the main module no `__spec__`, so its tracebacks warn.
    warnings.filterwarnings("ignore", "Module globals is missing a __spec__", DeprecationWarning)
    root = logging.getLogger()
    root.handlers[:] = [_PipeHandler(pipe)]
    root.setLevel(level)
    # An entrypoint of the function would replace the handler.
    overridden["SVCRUN_LOG_CONFIG"] = "0"
    pipe.send({"ready": True})
    function, kwargs = call
    try:
        function(**kwargs)
    except Exception:
        logging.getLogger("svcrun.process").exception("in_process() raised an exception")
        sys.exit(1)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the process is about to end


def _wait_until_guarded(guarded: Connection, parent: int) -> None:
    """Exit if the parent has died before its guard knew this process."""
    try:
        # A process that the parent has forked may hold the other end, so there may be no EOFError.
        while not guarded.poll(_POLL_INTERVAL):
            if os.getppid() != parent:
                os._exit(1)
        guarded.recv_bytes()
    except (EOFError, OSError):
        os._exit(1)
    guarded.close()


def _exit_by_signal(signum: int, _: FrameType | None) -> None:
    signal.signal(signum, signal.SIG_IGN)  # clean-up that the exit begins is not interrupted
    sys.exit(128 + signum)


class _PipeHandler(logging.Handler):
    """Write records to the parent; wait while the pipe is full."""

    def __init__(self, pipe: ChildPipe) -> None:
        super().__init__()
        self._pipe = pipe
        self._formatter = logging.Formatter()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            found = {name: getattr(record, name) for name in _FIELDS}
            found["msg"] = record.getMessage()
            if record.exc_info:
                found["exc_text"] = self._formatter.formatException(record.exc_info)
            elif record.exc_text:
                found["exc_text"] = record.exc_text
            if record.stack_info:
                found["stack_info"] = record.stack_info
            self._pipe.send(found)
        except Exception:  # noqa: BLE001 - a log call never raises
            self.handleError(record)

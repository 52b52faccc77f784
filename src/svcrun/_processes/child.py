"""The child's side of a spawned process: signals, log records, and the death of the parent.

The child writes lines of JSON to a pipe. The first one reports that it is ready; the others are log
records.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import sys
import threading
import time
import warnings
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from multiprocessing.connection import Connection
    from types import FrameType

__all__ = ("READY", "run_child")

READY: Final = b'{"ready": true}\n'

_GRACE: Final = 1.5
"""Seconds from SIGTERM to SIGKILL after the death of the parent."""

_POLL_INTERVAL: Final = 0.5  # seconds, on a system without pidfd

_FIELDS: Final = ("name", "levelno", "pathname", "lineno", "funcName", "created", "threadName")


def run_child(
    function: Callable[..., object],
    kwargs: Mapping[str, Any],
    pipe: Connection,
    parent: int,
    level: int,
) -> None:
    """Run `function` in this process; SIGTERM raises SystemExit in it.

    :param pipe: the pipe to the parent.
    :param parent: the process id of the parent.
    :param level: the level of the root logger.
    """
    # A group of its own: Ctrl-C at the terminal is for the parent alone, and the processes that
    # this one forks can be ended with it.
    with suppress(OSError):
        os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _exit_by_signal)
    threading.Thread(target=_end_with, args=(parent,), name="svcrun-parent", daemon=True).start()
    # Python 3.15: multiprocessing gives the main module no `__spec__`, so its tracebacks warn.
    warnings.filterwarnings("ignore", "Module globals is missing a __spec__", DeprecationWarning)
    root = logging.getLogger()
    root.handlers[:] = [_PipeHandler(pipe)]
    root.setLevel(level)
    # An entrypoint of the function would replace the handler.
    os.environ.setdefault("SVCRUN_LOG_CONFIG", "0")
    with suppress(OSError):
        _write(pipe.fileno(), READY)
    try:
        function(**kwargs)
    except Exception:
        logging.getLogger("svcrun.process").exception("in_process() raised an exception")
        sys.exit(1)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the process is about to end
        if _orphaned.is_set():
            # The thread that would kill the rest of the group ends with this process.
            os.killpg(0, signal.SIGKILL)


# Set when the parent has died.
_orphaned = threading.Event()


def _exit_by_signal(signum: int, _: FrameType | None) -> None:
    signal.signal(signum, signal.SIG_IGN)  # clean-up that the exit begins is not interrupted
    sys.exit(128 + signum)


def _end_with(parent: int) -> None:
    """Wait for the death of the parent, then end the group of this process."""
    try:
        descriptor = os.pidfd_open(parent)
    except (AttributeError, OSError):  # no such system call, or the parent has died already
        while os.getppid() == parent:
            time.sleep(_POLL_INTERVAL)
    else:
        # Race: the number may belong to another process by now, if the parent has died before.
        if os.getppid() == parent:
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            poll.poll()
    _orphaned.set()
    for signum, pause in ((signal.SIGTERM, _GRACE), (signal.SIGKILL, 0.0)):
        os.killpg(0, signum)
        time.sleep(pause)


class _PipeHandler(logging.Handler):
    """Write records to the parent; wait while the pipe is full."""

    def __init__(self, pipe: Connection) -> None:
        super().__init__()
        self._pipe = pipe  # an open one has to be referred to
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
            _write(self._pipe.fileno(), json.dumps(found).encode() + b"\n")
        except OSError:
            pass  # the parent has died
        except Exception:  # noqa: BLE001 - a log call never raises
            self.handleError(record)


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]

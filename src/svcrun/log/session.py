"""Who has the root logger: a stack of sessions, and under them what was found."""

from __future__ import annotations

import atexit
import logging
import threading
from time import monotonic

from svcrun._util.hints import TYPE_CHECKING, Any, Self
from svcrun.log.exception_hooks import ExceptionHooks, log_loop_exception
from svcrun.log.handler import ServiceNameHandler, ThreadedHandler
from svcrun.log.records import can_make_records, make_record
from svcrun.log.session_handler import SessionHandler
from svcrun.log.sinks import close_handler, flush_handler

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Callable
    from types import TracebackType

    LoopHandler = Callable[[AbstractEventLoop, dict[str, Any]], object]

__all__ = ("LogSession",)

_root_logger = logging.getLogger()

# In the order of opening; the last one is in force.
_sessions: list[LogSession] = []
_lock = threading.RLock()  # of the stack; no log call takes it


class LogSession:
    """One configuration of the root logger, from :func:`basic_config` until it is closed.

    Sessions may overlap and be closed in any order: the one opened last is in force. When none is
    left, the root logger has the level and the handlers that were found, and those that others
    have added to it meanwhile; the hooks are as they were found.

    :param level: the level of the root logger.
    :param has_output: whether one of the handlers writes for people to see, so that unhandled
        exceptions need not be printed besides.
    """

    def __init__(self, level: int, *, has_output: bool) -> None:
        self.level = level
        self.has_output = has_output
        self.handlers: list[logging.Handler] = []
        """What the root logger has while the session is in force."""
        self._yours: list[logging.Handler] = []  # to be flushed, not closed
        self._targets: list[logging.Handler] = []  # to be closed after those that write to them
        self._loop: AbstractEventLoop | None = None
        self._found_loop_handler: LoopHandler | None = None
        self._complete = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def attach(self, handler: logging.Handler, *, yours: bool = False) -> None:
        """Add a handler before the session is opened.

        :param yours: whether it outlives the session.
        """
        self.handlers.append(handler)
        if yours:
            self._yours.append(handler)

    def close_at_end(self, handler: logging.Handler) -> None:
        """Close a handler after those that write to it."""
        self._targets.append(handler)

    def open(self, loop: AbstractEventLoop | None = None) -> None:
        """Take over the root logger, and the exception handler of the loop."""
        if not (self.handlers and isinstance(self.handlers[0], ThreadedHandler)):
            # Without any handler, logging prints warnings by itself.
            self.handlers.insert(0, ServiceNameHandler())
        with _lock:
            if not _sessions:
                _root.take()
            if loop is not None:
                self._take_loop(loop)
            _sessions.append(self)
            self._set_in_use(True)
            _root.place(self.level, self.handlers)

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until every record logged before this call is written, and tell whether it is.

        :param timeout: how long to wait, in seconds; by default as long as something is written.
        """
        left = _countdown(timeout)
        self._flush_all_soon()
        complete = True
        for handler in self.handlers:
            if isinstance(handler, ThreadedHandler):
                complete = handler.wait_written(left()) and complete
            else:
                flush_handler(handler)
        return complete

    def close(self, timeout: float | None = None) -> bool:
        """Give back the root logger, write every buffered record, and end the threads.

        Closing twice does nothing more.

        :param timeout: how long to wait, in seconds; by default as long as something is written.
        :return: whether all was written. What was not is given up, its number told to stderr.
        """
        left = _countdown(timeout)
        with _lock:
            if self not in _sessions:
                return self._complete
            self._give_back()
            self._set_in_use(False)
        self._flush_all_soon()
        for handler in self.handlers:
            if not isinstance(handler, ThreadedHandler):
                flush_handler(handler)
            elif handler in self._yours:
                self._complete = handler.wait_written(left()) and self._complete
            else:
                handler.close(left())
                self._complete = self._complete and not handler.abandoned
        if self._complete:  # a stuck one is left alone
            for target in self._targets:
                close_handler(target)
        return self._complete

    def end_threads(self) -> None:
        """Write every buffered record and end the threads; from then on, a log call writes."""
        self._set_in_use(False)
        self._flush_all_soon()
        for handler in self.handlers:
            if isinstance(handler, ThreadedHandler) and handler not in self._yours:
                handler.close()

    def _set_in_use(self, in_use: bool) -> None:
        """Let nobody else close the handlers of the session, or let them be closed."""
        for handler in (*self.handlers, *self._targets):
            if isinstance(handler, SessionHandler) and handler not in self._yours:
                handler.in_use = in_use

    def _flush_all_soon(self) -> None:
        """Set all threads to work, so that one time limit does for all."""
        for handler in self.handlers:
            if isinstance(handler, ThreadedHandler):
                handler.flush_soon()

    def _give_back(self) -> None:
        was_in_force = _sessions[-1] is self
        _sessions.remove(self)
        if not _sessions:
            _root.give_back()
        elif was_in_force:
            _root.place(_sessions[-1].level, _sessions[-1].handlers)
        if self._loop is not None:
            self._give_back_loop(self._loop)

    def _take_loop(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        sharing = [one for one in _sessions if one._loop is loop]  # noqa: SLF001 - the same class
        if sharing:
            self._found_loop_handler = sharing[-1]._found_loop_handler  # noqa: SLF001
        else:
            self._found_loop_handler = loop.get_exception_handler()
        loop.set_exception_handler(log_loop_exception)

    def _give_back_loop(self, loop: AbstractEventLoop) -> None:
        self._loop = None
        if (
            all(one._loop is not loop for one in _sessions)  # noqa: SLF001 - the same class
            and loop.get_exception_handler() is log_loop_exception
        ):
            loop.set_exception_handler(self._found_loop_handler)


class _RootLogger:
    """The root logger and the hooks: what was found there, and what is put in its place."""

    def __init__(self) -> None:
        self._level = _root_logger.level
        self._found: list[logging.Handler] = []
        self._placed: list[logging.Handler] = []
        self._hooks: ExceptionHooks | None = None

    def take(self) -> None:
        """Remember what is found, before the first session."""
        self._level = _root_logger.level
        self._found = self._placed = list(_root_logger.handlers)
        self._hooks = ExceptionHooks(_has_output, _flush_newest)
        if can_make_records():
            logging.setLogRecordFactory(make_record)

    def place(self, level: int, handlers: list[logging.Handler]) -> None:
        """Replace what was placed before; what others have added meanwhile stays."""
        added = [
            handler
            for handler in _root_logger.handlers
            if handler not in self._placed and handler not in handlers
        ]
        # In one step, and in place: a log call of another thread may be going through the list.
        _root_logger.handlers[:] = handlers + added
        self._placed = handlers
        if _root_logger.level != level:
            _root_logger.setLevel(level)

    def give_back(self) -> None:
        """Put back what was found, after the last session."""
        self.place(self._level, self._found)
        self._found = self._placed = []
        if self._hooks is not None:
            self._hooks.remove()
            self._hooks = None
        if logging.getLogRecordFactory() is make_record:
            logging.setLogRecordFactory(logging.LogRecord)


def _has_output() -> bool:
    with _lock:
        return bool(_sessions) and _sessions[-1].has_output


def _flush_newest() -> None:
    with _lock:
        newest = _sessions[-1] if _sessions else None
    if newest is not None:
        newest.flush()


@atexit.register
def _end_threads() -> None:
    """Write what sessions that are never closed have buffered.

    That runs before logging.shutdown(), which has an empty list after some uses of logging.config.
    """
    for session in tuple(_sessions):
        session.end_threads()


def _countdown(timeout: float | None) -> Callable[[], float | None]:
    """Make a function that tells how much is left of a time limit."""
    if timeout is None:
        return lambda: None
    deadline = monotonic() + timeout
    return lambda: max(0.0, deadline - monotonic())


_root = _RootLogger()

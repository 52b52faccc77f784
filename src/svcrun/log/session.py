"""Stack of root-logger configurations."""

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
    from collections.abc import Callable, Iterable
    from types import TracebackType

    LoopHandler = Callable[[AbstractEventLoop, dict[str, Any]], object]

__all__ = ("LogSession",)

_root_logger = logging.getLogger()

# The open sessions in the order of opening; the last one is active.
_sessions: list[LogSession] = []
# Protects the stack. No log call acquires it.
_lock = threading.RLock()


class LogSession:
    """One configuration of the root logger, from :func:`basic_config` until :meth:`close`.

    Sessions may overlap and be closed in any order; the session that was opened last is active.
    After the last session, the root logger has its previous level and handlers again, in addition
    to handlers that other code added in the meantime. The exception hooks are restored as well.

    :param level: the level of the root logger.
    :param has_output: whether a handler shows records to people, so that unhandled exceptions need
        not be printed as well.
    """

    def __init__(self, level: int, *, has_output: bool) -> None:
        self.level = level
        self.has_output = has_output
        self.handlers: list[logging.Handler] = []
        """The handlers of the root logger while the session is active."""
        self._owned: list[logging.Handler] = []  # closed at the end; others are only flushed
        self._loop: AbstractEventLoop | None = None
        self._previous_loop_handler: LoopHandler | None = None
        self._is_complete = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def attach(self, handler: logging.Handler, owned: Iterable[logging.Handler]) -> None:
        """Add a handler before the session is opened.

        :param owned: of this handler and those that it writes to, the ones to close at the end. A
            handler comes before those that it writes to.
        """
        self.handlers.append(handler)
        self._owned.extend(owned)

    def open(self, loop: AbstractEventLoop | None = None) -> None:
        """Configure the root logger, and the exception handler of the loop."""
        if not (self.handlers and isinstance(self.handlers[0], ThreadedHandler)):
            # If the root logger had no handler, logging would print warnings itself.
            self.handlers.insert(0, ServiceNameHandler())
        with _lock:
            if not _sessions:
                _root.save()
            if loop is not None:
                self._set_loop_handler(loop)
            _sessions.append(self)
            self._set_in_use(True)
            _root.configure(self.level, self.handlers)

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until every record logged before this call is written.

        :param timeout: seconds to wait; by default, wait as long as the handlers make progress.
        :return: whether all records are written.
        """
        remaining = _countdown(timeout)
        self._flush_all_soon()
        is_complete = True
        for handler in self.handlers:
            if isinstance(handler, ThreadedHandler):
                is_complete = handler.wait_written(remaining()) and is_complete
            else:
                flush_handler(handler)
        return is_complete

    def close(self, timeout: float | None = None) -> bool:
        """Restore the root logger, write every buffered record, and end the threads.

        Further calls do nothing and return the same value.

        :param timeout: seconds to wait; by default, wait as long as the handlers make progress.
        :return: whether all records are written. Others are lost; a line on stderr says how many.
        """
        remaining = _countdown(timeout)
        with _lock:
            if self not in _sessions:
                return self._is_complete
            self._restore()
            self._set_in_use(False)
        # Without the lock, because a handler may take its time, and other sessions must not wait.
        self._flush_all_soon()
        for handler in self.handlers:
            if not isinstance(handler, ThreadedHandler):
                flush_handler(handler)
            elif handler in self._owned:
                # Its targets are closed below, when no thread writes to them any more.
                handler.close(remaining())
                self._is_complete = self._is_complete and not handler.abandoned
            else:
                self._is_complete = handler.wait_written(remaining()) and self._is_complete
        if self._is_complete:  # otherwise a thread may still be writing to a handler
            for owned in self._owned:
                if not isinstance(owned, ThreadedHandler):
                    close_handler(owned)
        return self._is_complete

    def end_threads(self) -> None:
        """Write every buffered record and end the threads; later log calls write themselves."""
        self._set_in_use(False)
        self._flush_all_soon()
        for handler in self._owned:
            if isinstance(handler, ThreadedHandler):
                handler.close()

    def _set_in_use(self, in_use: bool) -> None:
        """Protect the handlers of the session from ``logging.config``, or end the protection."""
        for handler in self._owned:
            if isinstance(handler, SessionHandler):
                handler.in_use = in_use

    def _flush_all_soon(self) -> None:
        """Make all threads write at the same time, because they share one time limit."""
        for handler in self.handlers:
            if isinstance(handler, ThreadedHandler):
                handler.flush_soon()

    def _restore(self) -> None:
        was_active = _sessions[-1] is self
        _sessions.remove(self)
        if not _sessions:
            _root.restore()
        elif was_active:
            _root.configure(_sessions[-1].level, _sessions[-1].handlers)
        if self._loop is not None:
            self._restore_loop_handler(self._loop)

    def _set_loop_handler(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        # Several sessions on one loop share the hook. The handler before the first one is restored
        # when the last one is closed.
        sharing = [one for one in _sessions if one._loop is loop]  # noqa: SLF001 - the same class
        if sharing:
            self._previous_loop_handler = sharing[-1]._previous_loop_handler  # noqa: SLF001
        else:
            self._previous_loop_handler = loop.get_exception_handler()
        loop.set_exception_handler(log_loop_exception)

    def _restore_loop_handler(self, loop: AbstractEventLoop) -> None:
        self._loop = None
        if (
            all(one._loop is not loop for one in _sessions)  # noqa: SLF001 - the same class
            and loop.get_exception_handler() is log_loop_exception
        ):
            loop.set_exception_handler(self._previous_loop_handler)


class _RootLogger:
    """The state of the root logger before the first session, and its present configuration."""

    def __init__(self) -> None:
        self._level = _root_logger.level
        self._saved: list[logging.Handler] = []
        self._configured: list[logging.Handler] = []
        self._hooks: ExceptionHooks | None = None

    def save(self) -> None:
        """Save the state of the root logger, and install the exception hooks."""
        self._level = _root_logger.level
        self._saved = self._configured = list(_root_logger.handlers)
        self._hooks = ExceptionHooks(_has_output, _flush_newest)
        if can_make_records():
            logging.setLogRecordFactory(make_record)

    def configure(self, level: int, handlers: list[logging.Handler]) -> None:
        """Replace the configured handlers; handlers that other code has added stay."""
        added = [
            handler
            for handler in _root_logger.handlers
            if handler not in self._configured and handler not in handlers
        ]
        # Race: a log call of another thread may be iterating over the list. So change the list in
        # place and in one step; addHandler() and removeHandler() would let records be lost.
        _root_logger.handlers[:] = handlers + added
        self._configured = handlers
        if _root_logger.level != level:
            _root_logger.setLevel(level)

    def restore(self) -> None:
        """Restore the saved state, after the last session."""
        self.configure(self._level, self._saved)
        self._saved = self._configured = []
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
    """Write the buffered records of sessions that were never closed.

    This runs before ``logging.shutdown()``, whose list of handlers is empty after some uses of
    ``logging.config``.
    """
    for session in tuple(_sessions):
        session.end_threads()


def _countdown(timeout: float | None) -> Callable[[], float | None]:
    """Return a function that returns the remaining seconds of a time limit."""
    if timeout is None:
        return lambda: None
    deadline = monotonic() + timeout
    return lambda: max(0.0, deadline - monotonic())


_root = _RootLogger()

"""Log unhandled exceptions of the main thread, of other threads and of event loops."""

from __future__ import annotations

import logging
import sys
import threading
import traceback

from svcrun._util.current_service import current_service, on_behalf_of
from svcrun._util.hints import TYPE_CHECKING, Any, Final
from svcrun._util.tasks import service_of
from svcrun.errors import show

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Callable, Iterator
    from types import TracebackType


__all__ = ("ExceptionHooks", "UnhandledLoopHook", "log_loop_exception")

# These exceptions end a program or a thread on purpose.
_NOT_LOGGED: Final = (KeyboardInterrupt, SystemExit)


class ExceptionHooks:
    """Install a ``sys.excepthook`` and a ``threading.excepthook`` that log.

    :param has_output: called for each exception; returns whether log records are shown anywhere.
        If not, the previous hooks are called, so that no traceback is hidden.
    :param flush: called after an exception of the main thread; waits until the log is written.
    """

    def __init__(self, has_output: Callable[[], bool], flush: Callable[[], object]) -> None:
        self._has_output = has_output
        self._flush = flush
        self._in_use = True
        self._previous_main = sys.excepthook
        self._previous_thread = threading.excepthook
        sys.excepthook = self._log_main
        threading.excepthook = self._log_thread

    def remove(self) -> None:
        """Restore the previous hooks, unless other code has replaced these hooks.

        That code may still call these hooks. From now on, they only call the previous hooks.
        """
        self._in_use = False
        # Compared by value, because each access to a method creates another bound method.
        if sys.excepthook == self._log_main:
            sys.excepthook = self._previous_main
        if threading.excepthook == self._log_thread:
            threading.excepthook = self._previous_thread

    def _log_main(
        self,
        kind: type[BaseException],
        error: BaseException,
        trace: TracebackType | None,
    ) -> None:
        logged = self._log("Unhandled exception", kind, error, trace)
        if self._in_use:
            self._flush()  # because the process ends now
        if not logged:
            self._previous_main(kind, error, trace)

    def _log_thread(self, args: threading.ExceptHookArgs) -> None:
        name = args.thread.name if args.thread else "?"
        error = args.exc_value or args.exc_type()
        if not self._log(
            f"Unhandled exception in thread {name}", args.exc_type, error, args.exc_traceback
        ):
            self._previous_thread(args)

    def _log(
        self,
        message: str,
        kind: type[BaseException],
        error: BaseException,
        trace: TracebackType | None,
    ) -> bool:
        if not self._in_use or issubclass(kind, _NOT_LOGGED) or not self._has_output():
            return False
        logger = logging.getLogger("unhandled")
        if not logger.isEnabledFor(logging.CRITICAL):
            return False
        logger.critical("%s", message, exc_info=(kind, error, trace))
        return True


class UnhandledLoopHook:
    """An exception handler for event loops that logs each report of the loop with its context.

    :param logger_name: the name of the logger.

    .. code-block:: python

        loop.set_exception_handler(UnhandledLoopHook())
    """

    def __init__(self, logger_name: str = "asyncio.unhandled") -> None:
        self._logger_name = logger_name

    def __call__(self, loop: AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log a report of the loop; never raise."""
        try:
            with on_behalf_of(_find_service(context)):
                logging.getLogger(self._logger_name).error(
                    "%s", "\n".join(_describe(context)), exc_info=_find_exception(context)
                )
        except Exception:  # noqa: BLE001 - an error here must not hide the report
            loop.default_exception_handler(context)


#: The hook that all sessions share.
log_loop_exception: Final = UnhandledLoopHook()


def _describe(context: dict[str, Any]) -> Iterator[str]:
    yield str(context.get("message") or "Unhandled exception in event loop")
    for key, value in sorted(context.items()):
        if key in {"message", "exception"} or value is None:
            continue
        if key in {"source_traceback", "handle_traceback"}:
            subject = "Object" if key == "source_traceback" else "Handle"
            yield f"{subject} created at (most recent call last):"
            yield "".join(traceback.format_list(value)).rstrip()
            continue
        yield f"{key}: {show(value)}"
        if key == "transport":
            yield from _describe_ends(value)


def _describe_ends(transport: Any) -> Iterator[str]:
    for name in ("peername", "sockname"):
        try:
            value = transport.get_extra_info(name)
        except Exception:  # noqa: BLE001 - a transport of the program may have no such method
            return
        if value:
            yield f"{name}: {show(value)}"


def _find_service(context: dict[str, Any]) -> object:
    """Return the service that the report is about.

    The loop may report an exception in any context, long after the task ended. So the service is
    that of the task, and the context counts only if the report names no task.
    """
    work = context.get("task") or context.get("future") or context.get("handle")
    return current_service.get() if work is None else service_of(work)


def _find_exception(context: dict[str, Any]) -> BaseException | None:
    error = context.get("exception")
    if isinstance(error, BaseException):
        return error
    for key in ("future", "task"):
        future = context.get(key)
        if future is not None and future.done() and not future.cancelled():
            found: BaseException | None = future.exception()
            return found
    return None

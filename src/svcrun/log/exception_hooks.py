"""What nobody caught goes to the log: from the main thread, other threads and event loops."""

from __future__ import annotations

import logging
import sys
import threading
import traceback

from svcrun._util.current_service import current_service, on_behalf_of
from svcrun._util.hints import TYPE_CHECKING, Any, Final
from svcrun._util.tasks import service_of

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Callable, Iterator
    from types import TracebackType


__all__ = ("ExceptionHooks", "UnhandledLoopHook", "log_loop_exception")

# These end a program, or a thread, on purpose.
_NOT_LOGGED: Final = (KeyboardInterrupt, SystemExit)


class ExceptionHooks:
    """``sys.excepthook`` and ``threading.excepthook`` that log, in place from now on.

    :param has_output: tells whether what is logged gets anywhere. If not, the hooks that were
        found do their work, so that no traceback is hidden.
    :param flush: waits until the log is written.
    """

    def __init__(self, has_output: Callable[[], bool], flush: Callable[[], object]) -> None:
        self._has_output = has_output
        self._flush = flush
        self._in_use = True
        self._found_main = sys.excepthook
        self._found_thread = threading.excepthook
        # Bound once, to be recognized
        self._main = self._log_main
        self._thread = self._log_thread
        sys.excepthook = self._main
        threading.excepthook = self._thread

    def remove(self) -> None:
        """Put back what was found, unless something else has taken the place meanwhile.

        That may go on calling these hooks; they only pass on from now on.
        """
        self._in_use = False
        if sys.excepthook is self._main:
            sys.excepthook = self._found_main
        if threading.excepthook is self._thread:
            threading.excepthook = self._found_thread

    def _log_main(
        self,
        kind: type[BaseException],
        error: BaseException,
        trace: TracebackType | None,
    ) -> None:
        logged = self._log("Unhandled exception", kind, error, trace)
        if self._in_use:
            self._flush()  # the process ends now
        if not logged:
            self._found_main(kind, error, trace)

    def _log_thread(self, args: threading.ExceptHookArgs) -> None:
        name = args.thread.name if args.thread else "?"
        error = args.exc_value or args.exc_type()
        if not self._log(
            f"Unhandled exception in thread {name}", args.exc_type, error, args.exc_traceback
        ):
            self._found_thread(args)

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
    """An event loop's exception handler that logs what the loop reports, with its context.

    :param logger_name: the logger to use.

    .. code-block:: python

        loop.set_exception_handler(UnhandledLoopHook())
    """

    def __init__(self, logger_name: str = "asyncio.unhandled") -> None:
        self._logger_name = logger_name

    def __call__(self, loop: AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log one report; whatever it holds, nothing is raised."""
        try:
            with on_behalf_of(_find_service(context)):
                logging.getLogger(self._logger_name).error(
                    "%s", "\n".join(_describe(context)), exc_info=_find_exception(context)
                )
        except Exception:  # noqa: BLE001 - what was reported must not get lost by a fault of ours
            loop.default_exception_handler(context)


#: The one hook that all sessions share.
log_loop_exception: Final = UnhandledLoopHook()


def _describe(context: dict[str, Any]) -> Iterator[str]:
    yield str(context.get("message") or "Unhandled exception in event loop")
    for key, value in sorted(context.items()):
        if key in {"message", "exception"} or value is None:
            continue
        if key in {"source_traceback", "handle_traceback"}:
            what = "Object" if key == "source_traceback" else "Handle"
            yield f"{what} created at (most recent call last):"
            yield "".join(traceback.format_list(value)).rstrip()
            continue
        yield f"{key}: {_represent(value)}"
        if key == "transport":
            yield from _describe_ends(value)


def _describe_ends(transport: Any) -> Iterator[str]:
    for name in ("peername", "sockname"):
        try:
            value = transport.get_extra_info(name)
        except Exception:  # noqa: BLE001 - a transport of the user's may have no such method
            return
        if value:
            yield f"{name}: {_represent(value)}"


def _represent(value: object) -> str:
    try:
        return repr(value)
    except Exception:  # noqa: BLE001 - a __repr__ may raise anything
        return f"<{type(value).__name__} object>"


def _find_service(context: dict[str, Any]) -> object:
    """Tell whose work is reported: the loop may do so in any context, long after."""
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

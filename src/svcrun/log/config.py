"""Configure the logging of a program in one call."""

from __future__ import annotations

import logging

from svcrun._util.hints import TYPE_CHECKING, Any
from svcrun._util.per_loop import running_loop
from svcrun.errors import ParameterTypeError
from svcrun.log.formats import (
    LOG_FORMAT,
    LOG_LEVEL,
    DateFormat,
    LogFormat,
    LogLevel,
    create_logging_handler,
    parse_format,
    parse_level,
)
from svcrun.log.handler import ThreadedHandler, check_buffer
from svcrun.log.session import LogSession

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Callable, Iterable

__all__ = ("basic_config",)

_ACCEPTED = "a list of logging.Handler instances"
_WRAPPER = "a function that takes a logging.Handler and returns one"

# Formats that show the attributes given as ``extra=``.
_STRUCTURED = frozenset({LogFormat.json, LogFormat.journald})


def basic_config(
    level: int | str = LogLevel.info,
    log_format: LogFormat | str | int | None = None,
    buffered: bool = True,
    buffer_size: int = 1024,
    flush_interval: float = 0.2,
    loop: AbstractEventLoop | None = None,
    handlers: Iterable[logging.Handler] = (),
    date_format: str | DateFormat | None = None,
    *,
    buffer_limit: int = 100_000,
    handler_wrapper: Callable[[logging.Handler], logging.Handler] | None = None,
    **options: Any,
) -> LogSession:
    """Configure the root logger, and return a session that restores it when it is closed.

    The root logger gets a level and new handlers. Unhandled exceptions of the program, of its
    threads and of the event loop are logged. A session that is never closed is flushed at the end
    of the interpreter.

    :param level: the lowest level that is logged, by name or number.
    :param log_format: the format, see :class:`LogFormat`; by default :meth:`LogFormat.default`.
    :param buffered: whether threads format and write the records: one for the format and one for
        each of ``handlers``, started by the first record. If False, each log call writes.
    :param buffer_size: the number of buffered records that wakes such a thread.
    :param flush_interval: seconds from a record until it is written.
    :param loop: the event loop whose unhandled exceptions are logged; by default the running loop,
        if any.
    :param handlers: more handlers for every record. They are flushed at the end, not closed.
    :param date_format: the format of the time, as for ``time.strftime``.
    :param buffer_limit: the most records in a buffer. Further records are dropped and counted.
    :param handler_wrapper: called with each handler; the handler that it returns is used instead.
        A new handler, such as a ``MemoryHandler`` around the first, is flushed and closed at the
        end.
    :param options: further options of the format, see :func:`create_logging_handler`; or the
        entrypoint's names of the parameters above, such as ``log_level``.
    :raises ValueError: if a level or format is unknown, or a number is out of range.
    :raises TypeError: if a parameter has a wrong type.
    :raises ImportError: if the library of the format is not installed.

    .. code-block:: python

        with basic_config(level="debug", log_format="plain"):
            logging.debug("hello")
    """
    # The entrypoint's names of the parameters.
    level = options.pop("log_level", level)
    buffered = options.pop("log_buffering", buffered)
    buffer_size = options.pop("log_buffer_size", buffer_size)
    flush_interval = options.pop("log_flush_interval", flush_interval)
    handlers = options.pop("log_handlers", handlers)
    date_format = options.pop("log_date_format", date_format)
    buffer_limit = options.pop("log_buffer_limit", buffer_limit)
    number = parse_level(level)
    chosen = parse_format(log_format)
    check_buffer(buffer_size, flush_interval, buffer_limit)
    borrowed = _check_handlers(handlers)
    own = create_logging_handler(chosen, date_format, **options)
    session = LogSession(number, has_output=own is not None)
    for target in borrowed if own is None else (own, *borrowed):
        is_own = target is own
        wrapped = target if handler_wrapper is None else _wrap(handler_wrapper, target)
        handler = wrapped
        if buffered and not isinstance(wrapped, ThreadedHandler):
            # Only the handlers of the formats are known to log nothing themselves.
            is_known = is_own and wrapped is target
            handler = ThreadedHandler(
                wrapped,
                buffer_size=buffer_size,
                flush_interval=flush_interval,
                buffer_limit=buffer_limit,
                passive=is_known,
                extra=not is_known or chosen in _STRUCTURED,
            )
        # Each handler once, because without a wrapper or a buffer some of the three are the same.
        chain = dict.fromkeys((handler, wrapped, target))
        session.attach(handler, [one for one in chain if is_own or one is not target])
    LOG_LEVEL.set(number)
    LOG_FORMAT.set(chosen)
    session.open(loop or running_loop())
    return session


def _wrap(
    wrapper: Callable[[logging.Handler], logging.Handler], handler: logging.Handler
) -> logging.Handler:
    if not callable(wrapper):
        raise ParameterTypeError("log", "handler_wrapper", wrapper, _WRAPPER)
    wrapped: object = wrapper(handler)
    if not isinstance(wrapped, logging.Handler):
        found = f"{wrapper!r}, which returned {wrapped!r}"
        raise TypeError(f"log: handler_wrapper must be {_WRAPPER}, not {found}")
    return wrapped


def _check_handlers(handlers: Iterable[logging.Handler]) -> tuple[logging.Handler, ...]:
    if isinstance(handlers, (logging.Handler, str)):
        raise ParameterTypeError("log", "handlers", handlers, _ACCEPTED)
    try:
        found = tuple(handlers)
    except TypeError:
        raise ParameterTypeError("log", "handlers", handlers, _ACCEPTED) from None
    for handler in found:
        if not isinstance(handler, logging.Handler):
            raise ParameterTypeError("log", "handlers", handler, _ACCEPTED)
    return found

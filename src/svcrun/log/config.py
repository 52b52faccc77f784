"""``basic_config``: the logging of a program in one call."""

from __future__ import annotations

import logging
from asyncio.events import _get_running_loop

from svcrun._util.hints import TYPE_CHECKING, Any
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

# Formats that show what is given as `extra`.
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
    """Configure the root logger until the session that is returned is closed.

    The root logger gets new handlers and a level; unhandled exceptions of the program, its
    threads and the event loop are logged. A session that is never closed is flushed when the
    interpreter ends.

    :param level: the lowest level that is logged, by name or number.
    :param log_format: the format, see :class:`LogFormat`; by default what suits stderr.
    :param buffered: whether threads do the formatting and writing, one for the format and one for
        each of ``handlers``. They start with the first record. Without, a log call writes.
    :param buffer_size: how many records wake such a thread.
    :param flush_interval: how long a record waits for others, in seconds.
    :param loop: the event loop whose unhandled exceptions are logged; by default the one that
        runs, if any.
    :param handlers: more handlers for every record. They are flushed at the end, not closed.
    :param date_format: how to show the time, as for ``time.strftime``.
    :param buffer_limit: how many records may wait; past it new ones are dropped, and counted.
    :param handler_wrapper: called with each handler; the handler that it returns is used instead.
        A new handler, such as a ``MemoryHandler`` around the first, is flushed and closed at the
        end.
    :param options: further options of the format, see :func:`create_logging_handler`. The
        entrypoint's names for the parameters above are accepted as well, such as ``log_level``.
    :raises ValueError: if a level, a format or a number is not usable.
    :raises TypeError: if a parameter is of a wrong type.
    :raises ImportError: if the library that the format needs is not there.

    .. code-block:: python

        with basic_config(level="debug", log_format="plain"):
            logging.debug("hello")
    """
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
    yours = _check_handlers(handlers)
    own = create_logging_handler(chosen, date_format, **options)
    session = LogSession(number, has_output=own is not None)
    for target in (*yours,) if own is None else (own, *yours):
        is_own = target is own
        writing = target if handler_wrapper is None else _wrap(handler_wrapper, target)
        is_known = is_own and writing is target
        handler = writing
        if buffered and not isinstance(writing, ThreadedHandler):
            handler = ThreadedHandler(
                writing,
                buffer_size=buffer_size,
                flush_interval=flush_interval,
                buffer_limit=buffer_limit,
                passive=is_known,
                extra=not is_known or chosen in _STRUCTURED,
            )
        session.attach(handler, yours=handler is target and not is_own)
        for closed, is_ours in ((writing, writing is not target), (target, is_own)):
            if is_ours and not isinstance(closed, ThreadedHandler):
                session.close_at_end(closed)
    LOG_LEVEL.set(number)
    LOG_FORMAT.set(chosen)
    session.open(loop or _get_running_loop())
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

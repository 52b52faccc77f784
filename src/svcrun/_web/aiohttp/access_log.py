"""The access log: a line for each request, put together by the thread that writes it."""

from __future__ import annotations

import logging
import os
import re
import time
from functools import lru_cache
from threading import get_ident
from time import time as now
from typing import TYPE_CHECKING, Any

from aiohttp.abc import AbstractAccessLogger
from aiohttp.web_log import AccessLogger as AiohttpAccessLogger
from multidict import istr

from svcrun._util.current_service import current_name
from svcrun.errors import ParameterError
from svcrun.log.records import LazyRecord, name_service

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiohttp import web

__all__ = ("AccessLogger",)

_FIELD = re.compile(r"%(?:\{([A-Za-z0-9_-]+)\}([ioe])|(Tf|[atPrsbTD%]))")


class AccessLogger(AbstractAccessLogger):
    """Log requests as aiohttp's own logger does, with less work on the event loop.

    Formats and the names of ``extra`` are those of :class:`aiohttp.web_log.AccessLogger`. The
    values are taken when the response has been sent; the line is made of them where it is written.

    :param logger: gets the lines, at level INFO.
    :param log_format: the format, with fields such as ``%a`` and ``%{User-Agent}i``.
    :raises ValueError: if the format has a field that is not known.
    """

    LOG_FORMAT = AiohttpAccessLogger.LOG_FORMAT

    def __init__(self, logger: logging.Logger, log_format: str = LOG_FORMAT) -> None:
        super().__init__(logger, log_format)
        self._format = _parse(log_format)
        # Not what logger.info() makes: to look for the caller costs more than all the rest.
        factory = logging.getLogRecordFactory()
        self._shared = _shared(logger.name, factory, current_name(), os.getpid(), get_ident())

    @property
    def enabled(self) -> bool:
        """Whether anybody wants the lines."""
        return self.logger.isEnabledFor(logging.INFO)

    # The name and the order of the parameters are aiohttp's.
    def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
        """Log one request.

        :param time: how long it took, in seconds.
        """
        logger = self.logger
        record = AccessRecord(self._shared, self._format, request, response, time)
        # What handle() does, but for the call that looks at no filters.
        (logger.handle if logger.filters or logger.disabled else logger.callHandlers)(record)


class AccessRecord(LazyRecord):
    """The record of one request.

    It keeps what is known when the response has been sent, and does not change any more.
    """

    __slots__ = (
        "_answered",
        "_asked",
        "_duration",
        "_form",
        "_method",
        "_remote",
        "_size",
        "_status",
        "_target",
        "_version",
    )

    def __init__(
        self,
        like: logging.LogRecord,
        form: _Format,
        request: web.BaseRequest,
        response: web.StreamResponse,
        duration: float,
    ) -> None:
        # Not super().__init__(): a call less for each request.
        self._shared = like
        self._at = now()
        self._form = form
        self._duration = duration
        self._remote = request.remote
        self._method = request.method
        self._target = request.raw_path
        self._version = request.version
        self._status = response.status
        self._size = response.body_length
        if form.asked:
            self._asked = tuple(map(request.headers.get, form.asked))
        if form.answered:
            self._answered = tuple(map(response.headers.get, form.answered))

    def compute_text(self) -> str:
        """Return the line."""
        form = self._form
        return form.text % form.values_of(self)

    def compute(self) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
        """Return what is logged."""
        form = self._form
        values = form.values_of(self)
        extra: dict[str, Any] = {name: values[index] for name, index in form.plain}
        for name, keys in form.keyed:
            extra[name] = {key: values[index] for key, index in keys}
        return form.text, values, extra


class _Format:
    """What an access log format asks for.

    :raises ValueError: if it has a field that is not known.
    """

    def __init__(self, log_format: str) -> None:
        text = []
        values: list[str] = []
        asked: list[str] = []
        answered: list[str] = []
        plain: dict[str, int] = {}
        keyed: dict[str, dict[str, int]] = {}
        end = 0
        for match in _FIELD.finditer(log_format):
            text.append(log_format[end : match.start()])
            end = match.end()
            key, kind, letter = match.groups()
            if letter == "%":
                text.append("%%")
                continue
            text.append("%s")
            index = len(values)
            if letter is not None:
                name, value = _PLAIN[letter]
                plain[name] = index
            else:
                name = _KEYED[kind]
                keyed.setdefault(name, {})[key] = index
                if kind == "i":
                    value = f"shown(record._asked[{len(asked)}])"
                    asked.append(istr(key))
                elif kind == "o":
                    value = f"shown(record._answered[{len(answered)}])"
                    answered.append(istr(key))
                else:
                    value = f"environ.get({key!r}, '-')"
            values.append(value)
        text.append(log_format[end:])
        if "%" in "".join(text).replace("%%", "").replace("%s", ""):
            accepted = f"a format such as {AiohttpAccessLogger.LOG_FORMAT!r}"
            raise ParameterError("AccessLogger", "access_log_format", log_format, accepted)
        #: The message, with a place for each value.
        self.text = "".join(text)
        #: Makes all the values of a record: one function, as calls are most of what they cost.
        source = f"lambda record: ({''.join(f'{value}, ' for value in values)})"
        self.values_of: Callable[[AccessRecord], tuple[Any, ...]] = eval(source, _NAMES)  # noqa: S307 - all that is not from here is a repr()
        #: The names of the headers that are needed.
        self.asked = tuple(asked)
        self.answered = tuple(answered)
        #: Which value is which attribute of the record: that of a plain field, and a dictionary of
        #: those that have a key.
        self.plain = tuple(plain.items())
        self.keyed = tuple((name, tuple(keys.items())) for name, keys in keyed.items())


# aiohttp makes a logger for each connection; the formats are few.
_parse = lru_cache(maxsize=64)(_Format)


@lru_cache(maxsize=64)
def _shared(
    name: str,
    factory: Callable[..., logging.LogRecord],
    _service: str | None,
    _process: int,
    _thread: int,
) -> logging.LogRecord:
    """Return what all records of a logger have in common, in one thread of one process."""
    like = factory(name, logging.INFO, __file__, 0, "", (), None, "log")
    if hasattr(like, "taskName"):
        like.taskName = None  # which of them asks first means nothing
    name_service(like)
    return like


@lru_cache(maxsize=16)
def _local_time(second: int) -> str:
    return time.strftime("[%d/%b/%Y:%H:%M:%S %z]", time.localtime(second))


def _shown(text: str | None) -> str:
    """Leave no character in `text` that could mean something to whoever shows the log."""
    if text is None:
        return "-"
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


# By their letters, the names of values, and how they are made of a record.
_PLAIN = {
    "a": ("remote_address", "record._remote or '-'"),
    "t": ("request_start_time", "local_time(int(record._at - record._duration))"),
    "P": ("process_id", "f'<{getpid()}>'"),
    "r": (
        "first_request_line",
        "f'{record._method} {shown(record._target)}"  # noqa: ISC004 - one is too long
        " HTTP/{record._version[0]}.{record._version[1]}'",
    ),
    "s": ("response_status", "record._status"),
    "b": ("response_size", "record._size"),
    "T": ("request_time", "str(round(record._duration))"),
    "Tf": ("request_time_frac", "f'{record._duration:06f}'"),
    "D": ("request_time_micro", "str(round(record._duration * 1_000_000))"),
}

_NAMES = {"environ": os.environ, "getpid": os.getpid, "local_time": _local_time, "shown": _shown}

_KEYED = {"i": "request_header", "o": "response_header", "e": "environment"}

"""The access log: one record per request, formatted by the thread that writes it."""

from __future__ import annotations

import logging
import os
import re
import time
from functools import lru_cache
from operator import attrgetter
from threading import get_ident
from time import time as now
from typing import TYPE_CHECKING, Any, ClassVar

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


@lru_cache(maxsize=16)
def _local_time(second: int) -> str:
    return time.strftime("[%d/%b/%Y:%H:%M:%S %z]", time.localtime(second))


def _printable(text: str | None) -> str:
    """Return `text` with its control characters escaped: a terminal may interpret them."""
    if text is None:
        return "-"
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


class AccessLogger(AbstractAccessLogger):
    """Log requests as aiohttp's own logger does, with less work on the event loop.

    The formats and the names of ``extra`` are those of :class:`aiohttp.web_log.AccessLogger`. The
    values are recorded when the response has been sent; the line is formatted when it is written.

    :param logger: receives the records, at level INFO.
    :param log_format: the format, with fields such as ``%a`` and ``%{User-Agent}i``.
    :raises ValueError: if the format has an unknown field.
    """

    LOG_FORMAT = AiohttpAccessLogger.LOG_FORMAT

    def __init__(self, logger: logging.Logger, log_format: str = LOG_FORMAT) -> None:
        super().__init__(logger, log_format)
        self._format = _parse(log_format)
        # logger.info() would look for its caller, which costs more than everything else here.
        factory = logging.getLogRecordFactory()
        self._shared = _shared_record(
            logger.name, factory, current_name(), os.getpid(), get_ident()
        )

    @property
    def enabled(self) -> bool:
        """Whether the logger accepts records of level INFO."""
        return self.logger.isEnabledFor(logging.INFO)

    # aiohttp passes the arguments by position.
    def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
        """Log one request.

        :param time: the duration of the request, in seconds.
        """
        self.logger.handle(AccessRecord(self._shared, self._format, request, response, time))


class AccessRecord(LazyRecord):
    """The record of one request, with the values that no longer change after the response.

    :param shared: a record with the attributes that all records of the logger have in common.
    :param log_format: the format of the line.
    """

    __slots__ = (
        "_duration",
        "_format",
        "_method",
        "_remote",
        "_request_headers",
        "_response_headers",
        "_size",
        "_status",
        "_target",
        "_version",
    )

    FIELDS: ClassVar[dict[str, tuple[str, Callable[[Any], object]]]] = {
        "a": ("remote_address", lambda self: self._remote or "-"),
        "t": ("request_start_time", lambda self: _local_time(int(self._at - self._duration))),
        "P": ("process_id", lambda _: f"<{os.getpid()}>"),
        "r": (
            "first_request_line",
            lambda self: (
                f"{self._method} {_printable(self._target)}"
                f" HTTP/{self._version[0]}.{self._version[1]}"
            ),
        ),
        "s": ("response_status", attrgetter("_status")),
        "b": ("response_size", attrgetter("_size")),
        "T": ("request_time", lambda self: str(round(self._duration))),
        "Tf": ("request_time_frac", lambda self: f"{self._duration:06f}"),
        "D": ("request_time_micro", lambda self: str(round(self._duration * 1_000_000))),
    }
    """The fields of a format: by their letters, the names of the values and how to compute them."""

    def __init__(
        self,
        shared: logging.LogRecord,
        log_format: _Format,
        request: web.BaseRequest,
        response: web.StreamResponse,
        duration: float,
    ) -> None:
        # Not super().__init__(), to save a call per request.
        self._shared = shared
        self._at = now()
        self._format = log_format
        self._duration = duration
        self._remote = request.remote
        self._method = request.method
        self._target = request.raw_path
        self._version = request.version
        self._status = response.status
        self._size = response.body_length
        if log_format.request_headers:
            get = request.headers.get
            self._request_headers = {name: get(name) for name in log_format.request_headers}
        if log_format.response_headers:
            get = response.headers.get
            self._response_headers = {name: get(name) for name in log_format.response_headers}

    @staticmethod
    def request_header(name: str) -> Callable[[Any], str]:
        """Return a function that returns a header of the request."""
        return lambda self: _printable(self._request_headers[name])

    @staticmethod
    def response_header(name: str) -> Callable[[Any], str]:
        """Return a function that returns a header of the response."""
        return lambda self: _printable(self._response_headers[name])

    def compute_text(self) -> str:
        """Return the line."""
        log_format = self._format
        return log_format.text % log_format.values_of(self)

    def compute(self) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
        """Return the message, its arguments, and the values as attributes by their names."""
        log_format = self._format
        values = log_format.values_of(self)
        extra: dict[str, Any] = {}
        for (name, key), value in zip(log_format.names, values, strict=True):
            if key is None:
                extra[name] = value
            else:
                extra.setdefault(name, {})[key] = value
        return log_format.text, values, extra


class _Format:
    """The format of an access log.

    :raises ValueError: if it has an unknown field.
    """

    def __init__(self, log_format: str) -> None:
        text = []
        # The name of each value, and its key if the field has one, such as the name of a header.
        self.names: list[tuple[str, str | None]] = []
        self.request_headers: list[str] = []
        self.response_headers: list[str] = []
        self._getters: list[Callable[[AccessRecord], object]] = []
        end = 0
        for match in _FIELD.finditer(log_format):
            text.append(log_format[end : match.start()])
            end = match.end()
            if match[0] == "%%":
                text.append("%%")
            else:
                text.append("%s")
                self._add(*match.groups())
        text.append(log_format[end:])
        # The message, with a place for each value.
        self.text = "".join(text)
        if "%" in self.text.replace("%%", "").replace("%s", ""):
            accepted = f"a format such as {AiohttpAccessLogger.LOG_FORMAT!r}"
            raise ParameterError("AccessLogger", "access_log_format", log_format, accepted)

    def values_of(self, record: AccessRecord) -> tuple[object, ...]:
        """Return the values of the fields."""
        return tuple([get(record) for get in self._getters])

    def _add(self, key: str, kind: str, letter: str) -> None:
        get: Callable[[AccessRecord], object]
        if kind == "i":
            name, get = "request_header", AccessRecord.request_header(key)
            self.request_headers.append(istr(key))
        elif kind == "o":
            name, get = "response_header", AccessRecord.response_header(key)
            self.response_headers.append(istr(key))
        elif kind == "e":
            name, get = "environment", lambda _: os.environ.get(key, "-")
        else:
            name, get = AccessRecord.FIELDS[letter]
        self.names.append((name, key))
        self._getters.append(get)


# aiohttp makes a logger for each connection; the formats are few.
_parse = lru_cache(maxsize=64)(_Format)


@lru_cache(maxsize=64)
def _shared_record(
    name: str,
    factory: Callable[..., logging.LogRecord],
    _service: str | None,
    _process: int,
    _thread: int,
) -> logging.LogRecord:
    """Return a record with the attributes that all records of a logger have in common.

    They depend on the service, the process and the thread as well.
    """
    record = factory(name, logging.INFO, __file__, 0, "", (), None, "log")
    if hasattr(record, "taskName"):
        record.taskName = None  # the first task that logs is not that of all records
    name_service(record)
    return record

"""The access log: a line for each request, put together by the thread that writes it."""

from __future__ import annotations

import logging
import os
import re
import time
from functools import lru_cache
from time import time as now
from typing import TYPE_CHECKING, Any, NamedTuple

from aiohttp.abc import AbstractAccessLogger
from aiohttp.web_log import AccessLogger as AiohttpAccessLogger

from svcrun.errors import ParameterError
from svcrun.log.records import LazyRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from aiohttp import HttpVersion, web

    Value = Callable[["Facts"], Any]

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
        if log_format not in _formats:
            _formats[log_format] = _Format(log_format)
        self.format = _formats[log_format]
        # Not what logger.info() makes: to look for the caller costs more than all the rest.
        self._like = logging.getLogRecordFactory()(
            logger.name, logging.INFO, __file__, 0, "", (), None, "log"
        )

    @property
    def enabled(self) -> bool:
        """Whether anybody wants the lines."""
        return self.logger.isEnabledFor(logging.INFO)

    # The name and the order of the parameters are aiohttp's.
    def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
        """Log one request.

        :param time: how long it took, in seconds.
        """
        facts = Facts(
            request.remote,
            request.method,
            request.raw_path,
            request.version,
            request.headers,
            response.status,
            response.body_length,
            response.headers,
            now(),
            time,
        )
        self.logger.handle(AccessRecord(self._like, self.format, facts))


class Facts(NamedTuple):
    """What is known of a request when its response has been sent, and does not change any more."""

    remote: str | None
    method: str
    target: str
    version: HttpVersion
    request_headers: Mapping[str, str]
    status: int
    size: int
    response_headers: Mapping[str, str]
    ended: float
    duration: float


class AccessRecord(LazyRecord):
    """The record of one request."""

    def __init__(self, like: logging.LogRecord, form: _Format, facts: Facts) -> None:
        super().__init__(like)
        self._format = form
        self._facts = facts

    def fill(self) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
        """Return what is logged of the facts."""
        form, facts = self._format, self._facts
        values = tuple([value_of(facts) for value_of in form.values])
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
        #: What the arguments of the message are made by.
        self.values: list[Value] = []
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
            index = len(self.values)
            if letter is not None:
                name, value_of = _PLAIN[letter]
                plain[name] = index
            else:
                name, make = _KEYED[kind]
                value_of = make(key)
                keyed.setdefault(name, {})[key] = index
            self.values.append(value_of)
        text.append(log_format[end:])
        if "%" in "".join(text).replace("%%", "").replace("%s", ""):
            accepted = f"fields like those of {AiohttpAccessLogger.LOG_FORMAT!r}"
            raise ParameterError("AccessLogger", "access_log_format", log_format, accepted)
        #: The message, with a place for each value.
        self.text = "".join(text)
        #: Which value is which attribute of the record: that of a plain field, and a dictionary of
        #: those that have a key.
        self.plain = tuple(plain.items())
        self.keyed = tuple((name, tuple(keys.items())) for name, keys in keyed.items())


_formats: dict[str, _Format] = {}


def _clean(text: str) -> str:
    """Leave no character in `text` that could mean something to whoever shows the log."""
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


@lru_cache(maxsize=16)
def _local_time(second: int) -> str:
    return time.strftime("[%d/%b/%Y:%H:%M:%S %z]", time.localtime(second))


def _start_time(facts: Facts) -> str:
    return _local_time(int(facts.ended - facts.duration))


def _first_line(facts: Facts) -> str:
    major, minor = facts.version
    return f"{facts.method} {_clean(facts.target)} HTTP/{major}.{minor}"


def _request_header(key: str) -> Value:
    return lambda facts: _clean(facts.request_headers.get(key, "-"))


def _response_header(key: str) -> Value:
    return lambda facts: facts.response_headers.get(key, "-")


def _variable(key: str) -> Value:
    return lambda _: os.environ.get(key, "-")


_PLAIN: dict[str, tuple[str, Value]] = {
    "a": ("remote_address", lambda facts: facts.remote or "-"),
    "t": ("request_start_time", _start_time),
    "P": ("process_id", lambda _: f"<{os.getpid()}>"),
    "r": ("first_request_line", _first_line),
    "s": ("response_status", lambda facts: facts.status),
    "b": ("response_size", lambda facts: facts.size),
    "T": ("request_time", lambda facts: str(round(facts.duration))),
    "Tf": ("request_time_frac", lambda facts: f"{facts.duration:06f}"),
    "D": ("request_time_micro", lambda facts: str(round(facts.duration * 1_000_000))),
}

_KEYED: dict[str, tuple[str, Callable[[str], Value]]] = {
    "i": ("request_header", _request_header),
    "o": ("response_header", _response_header),
    "e": ("environment", _variable),
}

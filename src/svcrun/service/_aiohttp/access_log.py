"""The access log: a line for each request, put together by the thread that writes it."""

from __future__ import annotations

import logging
import os
import re
import time
from typing import TYPE_CHECKING, Any

from aiohttp.abc import AbstractAccessLogger
from aiohttp.web_log import AccessLogger as AiohttpAccessLogger

from svcrun.errors import ParameterError

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiohttp import web

    Value = Callable[[web.BaseRequest, web.StreamResponse, float], Any]

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
        if log_format not in _compiled:
            _compiled[log_format] = _compile(log_format)
        self._text, self._fields = _compiled[log_format]

    @property
    def enabled(self) -> bool:
        """Whether anybody wants the lines."""
        return self.logger.isEnabledFor(logging.INFO)

    # The name and the order of the parameters are aiohttp's.
    def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
        """Log one request.

        :param time: how long it took, in seconds.
        """
        values = []
        extra: dict[str, Any] = {}
        for name, key, value_of in self._fields:
            value = value_of(request, response, time)
            values.append(value)
            if key is None:
                extra[name] = value
            else:
                extra.setdefault(name, {})[key] = value
        logger = self.logger
        # Not logger.info(): to look for the caller costs more than all the rest, and it is we.
        record = logger.makeRecord(
            logger.name, logging.INFO, __file__, 0, self._text, tuple(values), None, "log", extra
        )
        logger.handle(record)


_compiled: dict[str, tuple[str, list[tuple[str, str | None, Value]]]] = {}


def _compile(log_format: str) -> tuple[str, list[tuple[str, str | None, Value]]]:
    """Return the format of the message, and what to fill it with: names for `extra`, and values."""
    text = []
    fields: list[tuple[str, str | None, Value]] = []
    end = 0
    for match in _FIELD.finditer(log_format):
        text.append(log_format[end : match.start()])
        end = match.end()
        key, kind, plain = match.groups()
        if plain == "%":
            text.append("%%")
            continue
        text.append("%s")
        if plain is not None:
            name, value_of = _PLAIN[plain]
        else:
            name, make = _KEYED[kind]
            value_of = make(key)
        fields.append((name, key, value_of))
    text.append(log_format[end:])
    if "%" in "".join(text).replace("%%", "").replace("%s", ""):
        accepted = f"fields like those of {AiohttpAccessLogger.LOG_FORMAT!r}"
        raise ParameterError("AccessLogger", "access_log_format", log_format, accepted)
    return "".join(text), fields


def _clean(text: str) -> str:
    """Leave no character in `text` that could mean something to whoever shows the log."""
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def _remote(request: web.BaseRequest, _: object, __: object) -> str:
    return request.remote or "-"


_LOCAL_TIME = "[%d/%b/%Y:%H:%M:%S %z]"
_second = 0
_second_text = ""


def _start_time(_: object, __: object, duration: float) -> str:
    global _second, _second_text  # noqa: PLW0603 - most requests of a second share its text
    second = int(time.time() - duration)
    if second != _second:
        _second_text = time.strftime(_LOCAL_TIME, time.localtime(second))
        _second = second
    return _second_text


def _first_line(request: web.BaseRequest, _: object, __: object) -> str:
    version = request.version
    return f"{request.method} {_clean(request.raw_path)} HTTP/{version[0]}.{version[1]}"


def _request_header(key: str) -> Value:
    def value_of(request: web.BaseRequest, _: object, __: object) -> str:
        value = request.headers.get(key)
        return "-" if value is None else _clean(value)

    return value_of


def _response_header(key: str) -> Value:
    def value_of(_: object, response: web.StreamResponse, __: object) -> str:
        return response.headers.get(key, "-")

    return value_of


def _variable(key: str) -> Value:
    return lambda *_: os.environ.get(key, "-")


_PLAIN: dict[str, tuple[str, Value]] = {
    "a": ("remote_address", _remote),
    "t": ("request_start_time", _start_time),
    "P": ("process_id", lambda *_: f"<{os.getpid()}>"),
    "r": ("first_request_line", _first_line),
    "s": ("response_status", lambda _, response, __: response.status),
    "b": ("response_size", lambda _, response, __: response.body_length),
    "T": ("request_time", lambda *args: str(round(args[2]))),
    "Tf": ("request_time_frac", lambda *args: f"{args[2]:06f}"),
    "D": ("request_time_micro", lambda *args: str(round(args[2] * 1_000_000))),
}

_KEYED: dict[str, tuple[str, Callable[[str], Value]]] = {
    "i": ("request_header", _request_header),
    "o": ("response_header", _response_header),
    "e": ("environment", _variable),
}

"""A response that is written as the application sends it."""

from __future__ import annotations

import time
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from aiohttp import HttpVersion11, web
from aiohttp.http import SERVER_SOFTWARE
from multidict import CIMultiDict

from svcrun._web.event_streams import is_event_stream
from svcrun.errors import ClientDisconnected

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aiohttp.abc import AbstractStreamWriter

    Header = tuple[bytes, bytes]

__all__ = ("Response",)

_SERVER = b"server: " + SERVER_SOFTWARE.encode("ascii") + b"\r\n"
# Headers that the server reads, adds or removes.
_SPECIAL = frozenset({b"connection", b"content-length", b"date", b"server", b"transfer-encoding"})
_STATUSES = range(100, 1000)
# Statuses whose response has no body: those without a Content-Length, and 304, whose
# Content-Length is that of another response.
_WITHOUT_LENGTH = frozenset({*range(100, 200), 204})
_WITHOUT_BODY = _WITHOUT_LENGTH | {304}

_status_lines: dict[tuple[int, bool], bytes] = {}


class Response(web.StreamResponse):
    """The response of an application to one request.

    aiohttp stores headers as text, which changes bytes that are not UTF-8, and writes them apart
    from the body. This writes the bytes unchanged, together with the first part of the body.

    :param request: the request of the client.
    :param status: the status code.
    :param headers: the names and values of the headers.
    :raises TypeError: if a value has a wrong type.
    :raises ValueError: if `status` is not a status code, or a header contains a line break or NUL.
    """

    def __init__(self, request: web.BaseRequest, status: int, headers: Iterable[Header]) -> None:
        if type(status) is not int or status not in _STATUSES:
            raise ValueError(f"status must be an int from 100 to 999, not {status!r}")
        super().__init__(status=status)
        self._request = request
        self._raw_headers = list(headers)
        # Whether there is no body, whatever the application sends.
        self._has_no_body = request.method == "HEAD" or status in _WITHOUT_BODY
        # The rest of the body in bytes, if its length is known.
        self._left: int | None = None
        self._is_chunked = False
        self._has_begun = False
        # Whether the transport has all of the response.
        self.is_complete = False
        # The value of the header Content-Length.
        self._length: int | None = None
        self._size = 0
        self._is_persistent = True
        self._head = self._join_headers()

    async def send(self, body: bytes, *, more: bool) -> None:
        """Write a part of the body, the first one after the headers.

        :param more: whether another part follows.
        :raises OSError: if the client has disconnected.
        :raises RuntimeError: if the body is longer or shorter than its Content-Length.
        """
        writer = self._request.writer
        data = b"" if self._has_no_body else body
        pieces = [] if self._has_begun else [self._begin(len(data), more=more)]
        if self._left is not None:
            self._left -= len(data)
            if self._left < 0 or (self._left and not more):
                self._is_persistent = False
                how = "longer" if self._left < 0 else "shorter"
                raise RuntimeError(
                    f"the body is {how} than its Content-Length of {self._length} bytes"
                )
        if not self._is_chunked:
            pieces.append(data)
        else:
            if data:
                pieces += (b"%x\r\n" % len(data), data, b"\r\n")
            if not more:
                pieces.append(b"0\r\n\r\n")
        whole = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        try:
            if whole:
                await writer.write(whole)
            if not more:
                self._finish(writer)
            await writer.drain()
        except ConnectionError as error:
            raise ClientDisconnected from error

    def _begin(self, length: int, *, more: bool) -> bytes:
        """Return the status line and the headers.

        :param length: the length of the first part of the body.
        """
        self._has_begun = True
        request = self._request
        is_modern = request.version >= HttpVersion11
        lines = [_status_line(self.status, is_modern=is_modern), self._head]
        keep_alive = self._is_persistent and request.keep_alive
        if self._has_no_body:
            pass
        elif self._length is not None:
            self._left = self._length
        elif not more:
            lines.append(b"content-length: %d\r\n" % length)
        elif is_modern:
            lines.append(b"transfer-encoding: chunked\r\n")
            self._is_chunked = True
        else:
            keep_alive = False  # the end of the connection is the end of the body
        if keep_alive and not is_modern:
            lines.append(b"connection: keep-alive\r\n")
        elif is_modern and not keep_alive:
            lines.append(b"connection: close\r\n")
        lines.append(b"\r\n")
        self._is_persistent = keep_alive
        return b"".join(lines)

    def _finish(self, writer: AbstractStreamWriter) -> None:
        self.is_complete = True
        self._size = writer.output_size

    def _join_headers(self) -> bytes:
        """Return the headers that do not depend on the body.

        :raises ValueError: if a header contains a line break or NUL.
        """
        parts: list[bytes] = []
        seen = set()
        for name, value in self._raw_headers:
            lower = name.lower()
            if lower in _SPECIAL:
                seen.add(lower)
                if not self._apply_header(lower, value):
                    continue
            parts += (name, b": ", value, b"\r\n")
        whole = b"".join(parts)
        count = len(parts) // 4
        if whole.count(b"\n") != count or whole.count(b"\r") != count or b"\0" in whole:
            raise ValueError(f"a header contains a line break or NUL: {self._raw_headers!r}")
        if b"date" not in seen:
            whole += _date()
        if b"server" not in seen:
            whole += _SERVER
        return whole

    def _apply_header(self, name: bytes, value: bytes) -> bool:
        """Apply a header that concerns the server, and return whether to send it."""
        if name == b"content-length":
            self._length = _number(value)
            return self.status not in _WITHOUT_LENGTH
        if name == b"connection" and b"close" in value.lower():
            self._is_persistent = False
        return name not in {b"connection", b"transfer-encoding"}  # they concern one connection

    @property
    def is_event_stream(self) -> bool:
        """Whether this is an event stream, which is complete after any event."""
        return is_event_stream(self._raw_headers)

    # The interface of a response that a handler returns to aiohttp.

    @property
    def keep_alive(self) -> bool | None:
        """Whether the connection stays open after the response."""
        return self._is_persistent

    def force_close(self) -> None:
        """Close the connection after the response."""
        self._is_persistent = False

    @property
    def body_length(self) -> int:
        """The size of the response in bytes, for the access log."""
        return self._size

    @property
    def headers(self) -> CIMultiDict[str]:
        """The headers of the application, as text."""
        return CIMultiDict(
            (name.decode("latin-1"), value.decode("latin-1")) for name, value in self._raw_headers
        )

    @property
    def prepared(self) -> bool:
        """Whether the headers were written."""
        return self._has_begun

    async def prepare(self, request: web.BaseRequest) -> Any:
        """Do nothing: :meth:`send` has written the response."""

    async def write_eof(self, data: bytes = b"") -> None:
        """Do nothing: :meth:`send` has written the response."""


def _status_line(status: int, *, is_modern: bool) -> bytes:
    found = _status_lines.get((status, is_modern))
    if found is None:
        try:
            phrase = HTTPStatus(status).phrase
        except ValueError:
            phrase = ""
        found = b"HTTP/1.%d %d %b\r\n" % (is_modern, status, phrase.encode("ascii"))
        _status_lines[status, is_modern] = found
    return found


def _number(value: bytes) -> int:
    if not value.isdigit():
        raise ValueError(f"content-length must be a number of bytes, not {value!r}")
    return int(value)


_second = 0
_date_line = b""


def _date() -> bytes:
    global _second, _date_line  # noqa: PLW0603 - all responses of a second share it
    now = int(time.time())
    if now != _second:
        _date_line = b"date: " + formatdate(now, usegmt=True).encode("ascii") + b"\r\n"
        _second = now
    return _date_line

"""A response that is written as the application gave it."""

from __future__ import annotations

import time
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from aiohttp import HttpVersion11, web
from aiohttp.http import SERVER_SOFTWARE

from svcrun._web.aiohttp.server import is_stopping
from svcrun._web.event_streams import is_event_stream
from svcrun.errors import ClientDisconnected

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aiohttp.abc import AbstractStreamWriter
    from multidict import CIMultiDict

    Header = tuple[bytes, bytes]

__all__ = ("Response",)

_SERVER = b"server: " + SERVER_SOFTWARE.encode("ascii") + b"\r\n"
# What does not depend on the application alone.
_OURS = frozenset({b"connection", b"content-length", b"date", b"server", b"transfer-encoding"})
_STATUSES = range(100, 1000)
# Those that have no length either, and those that may tell how long another response would be.
_LENGTHLESS = frozenset({*range(100, 200), 204})
_BODILESS = _LENGTHLESS | {304}

_status_lines: dict[tuple[int, bool], bytes] = {}


class Response(web.StreamResponse):
    """What an application sends in answer to one request.

    aiohttp would keep headers as text, so that bytes change which are no UTF-8, and write them
    apart from the body; here the bytes are written as they are, with the first part of the body.

    :param request: what is answered.
    :param status: its number.
    :param headers: names and values.
    :raises TypeError: if something is of a wrong type.
    :raises ValueError: if a header holds what would begin another one.
    """

    def __init__(self, request: web.BaseRequest, status: int, headers: Iterable[Header]) -> None:
        if type(status) is not int or status not in _STATUSES:
            raise ValueError(f"status={status!r} is no number of a response, such as 200")
        super().__init__(status=status)
        self._request = request
        self._given = list(headers)
        # Whether there is no body, whatever the application sends.
        self._is_bare = request.method == "HEAD" or status in _BODILESS
        # How much of the body is still to come, if it is known.
        self._left: int | None = None
        self._is_chunked = False
        self._has_begun = False
        # Whether all of it is with the transport.
        self.is_complete = False
        # How long it is said to be.
        self._length: int | None = None
        self._head = self._join_headers()

    async def send(self, body: bytes, *, more: bool) -> None:
        """Write a part of the body, and what stands before it.

        :param more: whether another part follows.
        :raises OSError: if the client has gone.
        :raises RuntimeError: if the body is not as long as the headers say.
        """
        writer = self._request.writer
        data = b"" if self._is_bare else body
        pieces = [] if self._has_begun else [self._begin(len(data), more=more)]
        if self._left is not None:
            self._left -= len(data)
            if self._left < 0 or (self._left and not more):
                self._keep_alive = False
                how = "longer" if self._left < 0 else "shorter"
                raise RuntimeError(f"the body is {how} than its content-length: {self._length}")
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
        """Return the head of the response, when it is known how long the first part is."""
        self._has_begun = True
        request = self._request
        is_modern = request.version >= HttpVersion11
        lines = [_status_line(self.status, is_modern=is_modern), self._head]
        keep_alive = self._keep_alive is not False and request.keep_alive
        if self._is_bare:
            pass
        elif self._length is not None:
            self._left = self._length
        elif not more:
            lines.append(b"content-length: %d\r\n" % length)
        elif is_modern:
            lines.append(b"transfer-encoding: chunked\r\n")
            self._is_chunked = True
        else:
            keep_alive = False  # its end is that of the connection
        if keep_alive and is_stopping(request):
            keep_alive = False
        if keep_alive and not is_modern:
            lines.append(b"connection: keep-alive\r\n")
        elif is_modern and not keep_alive:
            lines.append(b"connection: close\r\n")
        lines.append(b"\r\n")
        self._keep_alive = keep_alive
        return b"".join(lines)

    def _finish(self, writer: AbstractStreamWriter) -> None:
        self.is_complete = self._eof_sent = True
        self._body_length = writer.output_size

    def _join_headers(self) -> bytes:
        """Return the headers that are known before the body is."""
        parts: list[bytes] = []
        seen = set()
        for name, value in self._given:
            lower = name.lower()
            if lower in _OURS:
                seen.add(lower)
                if not self._heed(lower, value):
                    continue
            parts += (name, b": ", value, b"\r\n")
        whole = b"".join(parts)
        count = len(parts) // 4
        if whole.count(b"\n") != count or whole.count(b"\r") != count or b"\0" in whole:
            raise ValueError(f"a header holds what would end it: {self._given!r}")
        if b"date" not in seen:
            whole += _date()
        if b"server" not in seen:
            whole += _SERVER
        return whole

    def _heed(self, name: bytes, value: bytes) -> bool:
        """Do what a header asks of the server, and tell whether the client is to have it."""
        if name == b"content-length":
            self._length = _number(value)
            return self.status not in _LENGTHLESS
        if name == b"connection" and b"close" in value.lower():
            self._keep_alive = False
        return name not in {b"connection", b"transfer-encoding"}  # which are between us two

    @property
    def is_event_stream(self) -> bool:
        """Whether this is an event stream, which is complete after any event."""
        return is_event_stream(self._given)

    # What aiohttp asks of a response that a handler returns.

    @property
    def headers(self) -> CIMultiDict[str]:
        """The headers of the application, as text."""
        if self._given and not self._headers:
            self._headers.extend(
                (name.decode("latin-1"), value.decode("latin-1")) for name, value in self._given
            )
        return self._headers

    @property
    def prepared(self) -> bool:
        """Whether something was written."""
        return self._has_begun

    async def prepare(self, request: web.BaseRequest) -> Any:
        """Do nothing: it is written by :meth:`send`."""

    async def write_eof(self, data: bytes = b"") -> None:
        """Do nothing: it is written by :meth:`send`."""


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
        raise ValueError(f"content-length is {value!r}, which is no number of bytes")
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

"""A strict reader of HTTP requests without a body, and the responses to them; no input or output.

Only GET and HEAD are accepted, and each connection serves one request. So there is nothing to
negotiate, and a malformed request has no second meaning.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from typing import Final
from urllib.parse import parse_qs

__all__ = ("END_OF_HEAD", "FAILED", "MAX_HEAD", "BadRequest", "Request", "Response", "parse")

MAX_HEAD: Final = 8192
"""The maximum size of a request line and its headers, in bytes."""

END_OF_HEAD: Final = b"\r\n\r\n"

_FORWARDING: Final = {"forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-real-ip"}
_NAME: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_REQUEST_LINE: Final = re.compile(rf"({_NAME}) ([!-~]+) HTTP/(\d)\.(\d)")
_HEADER: Final = re.compile(rf"({_NAME}):[ \t]*([\t -~\x80-\xff]*)")


class BadRequest(Exception):
    """A request is refused.

    :param status: the status of the response.
    """

    def __init__(self, status: HTTPStatus) -> None:
        super().__init__(status.phrase)
        self.status = status


@dataclass(frozen=True, slots=True)
class Request:
    """A request for a resource."""

    path: str
    query: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    """The headers by their names in lower case; repeated ones are joined by commas."""
    is_head: bool = False

    @property
    def has_body(self) -> bool:
        """Whether a body follows the request."""
        return not self.headers.keys().isdisjoint({"content-length", "transfer-encoding"})

    @property
    def is_direct(self) -> bool:
        """Whether the request names this host, and no proxy has passed it on.

        A proxy on this host connects from loopback for clients of other hosts. So does a browser
        that a web site has made believe that its name is one of loopback.
        """
        if not self.headers.keys().isdisjoint(_FORWARDING):
            return False
        host = self.headers.get("host", "localhost")
        if host.startswith("["):
            return True  # an IPv6 address
        name = host.rpartition(":")[0] or host
        return name.lower() == "localhost" or name.replace(".", "").isdigit()

    def wants_json(self) -> bool:
        """Return whether the client asks for JSON."""
        accepted = self.headers.get("accept", "")
        return "application/json" in accepted or "verbose" in parse_qs(
            self.query, keep_blank_values=True
        )


@dataclass(frozen=True, slots=True)
class Response:
    """A response with a body."""

    status: HTTPStatus
    body: str | bytes
    content_type: str = "text/plain; charset=utf-8"
    headers: tuple[str, ...] = ()

    def encode(self, *, is_head: bool = False) -> bytes:
        """Return the bytes of the response; without the body if the request was a HEAD."""
        body = self.body
        if isinstance(body, str):
            body = body.encode("utf-8", "backslashreplace")
        lines = (
            f"HTTP/1.1 {self.status.value} {self.status.phrase}",
            f"Date: {formatdate(usegmt=True)}",
            f"Content-Type: {self.content_type}",
            f"Content-Length: {len(body)}",
            "Cache-Control: no-store",
            "X-Content-Type-Options: nosniff",
            "Connection: close",
            *self.headers,
        )
        head = "".join(f"{line}\r\n" for line in lines).encode("latin-1") + b"\r\n"
        return head if is_head else head + body


FAILED: Final = Response(HTTPStatus.INTERNAL_SERVER_ERROR, "the request failed; see the log\n")
"""The response to a request whose code raised an exception."""


def parse(data: bytes | bytearray) -> Request | None:
    """Return the request at the start of `data`, or None if it is not complete.

    A body is not read, since neither GET nor HEAD has one.

    :raises BadRequest: if the request is malformed, too large, or of another method.
    """
    head, end, _ = data.partition(END_OF_HEAD)
    if not end:
        if len(data) >= MAX_HEAD:
            raise BadRequest(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        return None
    if len(head) > MAX_HEAD:
        raise BadRequest(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    request_line, *lines = head.decode("latin-1").split("\r\n")
    method, target, version = _parse_request_line(request_line)
    headers: dict[str, str] = {}
    for line in lines:
        found = _HEADER.fullmatch(line)
        if found is None:
            raise BadRequest(HTTPStatus.BAD_REQUEST)
        name, value = found[1].lower(), found[2].strip(" \t")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    if "host" not in headers and version > (1, 0):
        raise BadRequest(HTTPStatus.BAD_REQUEST)
    path, _, query = target.partition("?")
    return Request(path, query, headers, is_head=method == "HEAD")


def _parse_request_line(line: str) -> tuple[str, str, tuple[int, int]]:
    """Return method, target and version.

    :raises BadRequest: if the line is malformed, or requests no resource of this server.
    """
    found = _REQUEST_LINE.fullmatch(line)
    if found is None:
        raise BadRequest(HTTPStatus.BAD_REQUEST)
    method, target = found[1], found[2]
    version = int(found[3]), int(found[4])
    if version[0] != 1:
        raise BadRequest(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED)
    if method not in {"GET", "HEAD"}:
        raise BadRequest(HTTPStatus.METHOD_NOT_ALLOWED)
    if not target.startswith("/"):
        raise BadRequest(HTTPStatus.BAD_REQUEST)
    return method, target, version

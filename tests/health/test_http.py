"""Laws of the reader of HTTP requests and of the responses."""

import contextlib
from http import HTTPStatus

import pytest
from hypothesis import given, strategies as st

from svcrun._health.http import MAX_HEAD, BadRequest, Request, Response, parse


def head(*lines: str) -> bytes:
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode("latin-1")


LONG = "x" * MAX_HEAD
GOOD = head("GET /livez?verbose HTTP/1.1", "Host: localhost", "Accept: */*")


def test_a_complete_request_is_returned() -> None:
    headers = {"host": "localhost", "accept": "*/*"}
    assert parse(GOOD) == Request("/livez", "verbose", headers)


def test_a_head_request_is_marked() -> None:
    assert parse(head("HEAD / HTTP/1.0")) == Request("/", is_head=True)


def test_repeated_headers_are_joined() -> None:
    request = parse(head("GET / HTTP/1.1", "Host: it", "Accept: a", "accept:b\t"))
    assert request is not None
    assert request.headers["accept"] == "a, b"


@pytest.mark.parametrize("length", range(len(GOOD)))
def test_the_start_of_a_request_is_not_complete(length: int) -> None:
    assert parse(GOOD[:length]) is None


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (head("POST /livez HTTP/1.1", "Host: it"), HTTPStatus.METHOD_NOT_ALLOWED),
        (head("get / HTTP/1.1", "Host: it"), HTTPStatus.METHOD_NOT_ALLOWED),
        (head("GET / HTTP/2.0", "Host: it"), HTTPStatus.HTTP_VERSION_NOT_SUPPORTED),
        (head("PRI * HTTP/2.0"), HTTPStatus.HTTP_VERSION_NOT_SUPPORTED),
        (head("GET http://it/livez HTTP/1.1", "Host: it"), HTTPStatus.BAD_REQUEST),
        (head("GET  / HTTP/1.1", "Host: it"), HTTPStatus.BAD_REQUEST),
        (head("GET /a b HTTP/1.1", "Host: it"), HTTPStatus.BAD_REQUEST),
        (head("GET /\xe9 HTTP/1.1", "Host: it"), HTTPStatus.BAD_REQUEST),
        (head("GET /", "Host: it"), HTTPStatus.BAD_REQUEST),
        (head("", "GET / HTTP/1.1"), HTTPStatus.BAD_REQUEST),
        (head("GET / HTTP/1.1"), HTTPStatus.BAD_REQUEST),
        (head("GET / HTTP/1.1", "Host : it"), HTTPStatus.BAD_REQUEST),
        (head("GET / HTTP/1.1", "Host: it", " folded"), HTTPStatus.BAD_REQUEST),
        (head("GET / HTTP/1.1", "Host: it", "X: \0"), HTTPStatus.BAD_REQUEST),
        (b"GET / HTTP/1.1\nHost: it\n\r\n\r\n", HTTPStatus.BAD_REQUEST),
        (b"\x16\x03\x01\r\n\r\n", HTTPStatus.BAD_REQUEST),
        (LONG.encode(), HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE),
        (
            head("GET / HTTP/1.1", "X: " + "x" * MAX_HEAD),
            HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
        ),
    ],
)
def test_anything_else_is_refused_with_its_status(data: bytes, status: HTTPStatus) -> None:
    with pytest.raises(BadRequest) as caught:
        parse(data)
    assert caught.value.status == status


@given(st.binary(max_size=200) | st.from_regex(rb"(GET|HEAD) /[ -~]* HTTP/1\.1\r\n.*\r\n\r\n"))
def test_no_input_raises_anything_else(data: bytes) -> None:
    with contextlib.suppress(BadRequest):
        parse(data)


@pytest.mark.parametrize(
    ("target", "accept", "wants_json"),
    [
        ("/livez", "*/*", False),
        ("/livez?verbose", "*/*", True),
        ("/livez?verbose=1", "*/*", True),
        ("/livez?terse", "*/*", False),
        ("/livez", "application/json", True),
        ("/livez", "text/html, application/json;q=0.9", True),
    ],
)
def test_a_query_or_a_header_asks_for_json(target: str, accept: str, wants_json: bool) -> None:
    request = parse(head(f"GET {target} HTTP/1.1", "Host: it", f"Accept: {accept}"))
    assert request is not None
    assert request.wants_json() is wants_json


def test_the_response_to_a_head_request_has_the_length_but_no_body() -> None:
    response = Response(HTTPStatus.OK, "grün\n")
    whole = response.encode()
    assert b"\r\nContent-Length: 6\r\n" in whole
    assert whole == response.encode(is_head=True) + "grün\n".encode()

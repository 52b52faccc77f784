"""The access log has the lines and attributes that aiohttp's own has."""

import asyncio
import logging
import os
from typing import Any

import pytest

pytest.importorskip("aiohttp")

from aiohttp import web as aioweb
from aiohttp.abc import AbstractAccessLogger
from aiohttp.test_utils import make_mocked_request
from aiohttp.web_log import AccessLogger as TheirLogger

from svcrun.log.records import name_service
from svcrun.service.aiohttp import AccessLogger
from tests.service.streams import running
from tests.service.webs import Web, client, get, read_answer, request

FORMATS = [
    TheirLogger.LOG_FORMAT,
    "%a %t %P %r %s %b %T %Tf %D",
    "%{User-Agent}i %{Content-Type}o",
    "%{Absent}i %{Absent}o",
    "%{A}i %{B}i",
    "nothing at all",
    "%s %s",
]

# The attributes of every record.
OF_THE_CALL = set(vars(logging.LogRecord("", 0, "", 0, "", (), None))) | {"message"}


class Both(AbstractAccessLogger):
    """A logger that logs each request by aiohttp's and by svcrun's access logger."""

    def __init__(self, logger: logging.Logger, log_format: str) -> None:
        super().__init__(logger, log_format)
        self.loggers: list[AbstractAccessLogger] = [
            AccessLogger(logging.getLogger("ours"), log_format),
            TheirLogger(logging.getLogger("theirs"), log_format),
        ]

    def log(self, request: Any, response: Any, time: float) -> None:
        for logger in self.loggers:
            logger.log(request, response, time)


async def answer(request: aioweb.Request) -> aioweb.StreamResponse:
    if request.path == "/missing":
        raise aioweb.HTTPNotFound
    if request.path == "/broken":
        raise LookupError
    return aioweb.Response(text="x" * 1234)


def extra(record: logging.LogRecord) -> dict[str, Any]:
    record.getMessage()
    name_service(record)  # as the handlers of the library do
    return {name: value for name, value in vars(record).items() if name not in OF_THE_CALL}


@pytest.mark.parametrize("log_format", FORMATS)
async def test_lines_and_attributes_are_those_of_aiohttp(
    http: Web, caplog: pytest.LogCaptureFixture, log_format: str
) -> None:
    caplog.set_level(logging.INFO)
    kwargs = {"access_log_class": Both, "access_log_format": log_format}
    async with running(http.service(answer, runner_kwargs=kwargs)) as service:
        for path in ("/", "/with?a=query&and=%20more", "/missing", "/broken"):
            await get(service, path)
        async with client(service) as (reader, writer):
            writer.write(request("/", "User-Agent: me %s", "A: 1", "B: 2", method="HEAD"))
            await read_answer(reader, head_only=True)
    ours = [record for record in caplog.records if record.name == "ours"]
    theirs = [record for record in caplog.records if record.name == "theirs"]
    assert len(ours) == len(theirs) == 5
    for own, other in zip(ours, theirs, strict=True):
        assert own.getMessage() == other.getMessage()
        assert extra(own) == extra(other)
        assert own.levelno == other.levelno == logging.INFO
        assert logging.Formatter().format(own) == logging.Formatter().format(other)


async def test_environment_variables_and_percent_signs_are_supported_in_a_format(
    http: Web, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Variables of the environment, and a percent sign."""
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("SVCRUN_TEST_REGION", "north")
    kwargs = {"access_log_format": "%{SVCRUN_TEST_REGION}e %{SVCRUN_TEST_ABSENT}e 100%% %s"}
    async with running(http.service(answer, runner_kwargs=kwargs)) as service:
        await get(service)
    (record,) = [record for record in caplog.records if record.name == "aiohttp.access"]
    assert record.getMessage() == "north - 100% 200"


async def test_control_characters_in_headers_are_escaped(
    http: Web, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with running(http.service(answer)) as service, client(service) as (reader, writer):
        writer.write(request("/", "User-Agent: a\tb\x9bc"))
        await read_answer(reader)
    (record,) = [record for record in caplog.records if record.name == "aiohttp.access"]
    line = record.getMessage()
    assert line.isprintable()
    assert "a\\tb" in line


def test_control_characters_in_the_target_are_escaped(caplog: pytest.LogCaptureFixture) -> None:
    """Not every parser of aiohttp's refuses it."""
    caplog.set_level(logging.INFO)
    asked = make_mocked_request("GET", "/a\x9bb")
    AccessLogger(logging.getLogger("ours")).log(asked, aioweb.Response(), 0.1)
    line = caplog.records[-1].getMessage()
    assert '"GET /a\\x9bb HTTP/1.1"' in line
    assert line.isprintable()


@pytest.mark.parametrize("log_format", ["%Q", "%{User-Agent}x", "100%", "%{}i", "%"])
def test_an_unknown_attribute_of_a_format_is_named(log_format: str) -> None:
    with pytest.raises(ValueError, match="access_log_format must be"):
        AccessLogger(logging.getLogger("ours"), log_format)


async def test_no_line_is_made_if_the_logger_is_disabled(
    http: Web, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "aiohttp.access")
    assert not AccessLogger(logging.getLogger("aiohttp.access")).enabled
    async with running(http.service(answer)) as service:
        assert (await get(service)).status == 200
    assert not [record for record in caplog.records if record.name == "aiohttp.access"]


async def test_logged_values_are_those_at_the_time_of_the_response(
    http: Web, caplog: pytest.LogCaptureFixture
) -> None:
    """However late the line is made of them."""
    caplog.set_level(logging.INFO)
    async with running(http.service(answer)) as service, client(service) as (reader, writer):
        for number in range(3):
            writer.write(request(f"/{number}", f"User-Agent: number {number}"))
            await read_answer(reader)
            await asyncio.sleep(0)
    lines = [r.getMessage() for r in caplog.records if r.name == "aiohttp.access"]
    assert len(lines) == 3
    for number, line in enumerate(lines):
        assert f'"GET /{number} HTTP/1.1" 200 ' in line
        assert f'"number {number}"' in line
    assert f"<{os.getpid()}>" not in lines[0]

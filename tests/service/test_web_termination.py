"""A stop by SIGTERM loses no request of a web service (C38).

Each program is a server in a process of its own, which gets real signals and has real clients.
"""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from svcrun import entrypoint
from tests.conftest import Certificates
from tests.entrypoint.programs import complaints
from tests.support import Program

pytest.importorskip("aiohttp")

from aiohttp.web import Application

from svcrun.service.aiohttp import AIOHTTPService
from tests.service.web_programs import KINDS, LOOPS, WebProgram, ask
from tests.service.webs import read_answer, request

# An idle connection that is not closed for another reason lets a test fail.
FOREVER = 3600


@pytest.fixture(params=LOOPS)
def use_uvloop(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture(params=KINDS)
def web(
    request: pytest.FixtureRequest, run_program: Callable[..., Program], use_uvloop: str
) -> WebProgram:
    """A program of each kind on each loop."""
    return WebProgram(run_program, request.param, use_uvloop)


@pytest.fixture(params=["plain", "TLS"])
def any_web(
    request: pytest.FixtureRequest,
    web: WebProgram,
    certificates: Certificates,
    run_program: Callable[..., Program],
    use_uvloop: str,
) -> WebProgram:
    """A program of each kind on each loop, without TLS and with it."""
    if request.param == "TLS":
        return WebProgram(run_program, web.kind, use_uvloop, certificates)
    return web


@contextlib.asynccontextmanager
async def ends_in_order(web: WebProgram) -> AsyncIterator[None]:
    """Check that the program ends after the block, and has nothing to say."""
    yield
    outcome = await web.end()
    assert (outcome.returncode, complaints(outcome)) == (0, "")


def assert_last(answer: Any, path: str = "/") -> None:
    assert (answer.status, answer.body) == (200, path.encode())
    assert answer.closes


async def test_idle_clients_that_send_a_request_after_the_signal_are_answered(
    any_web: WebProgram,
) -> None:
    await any_web.start(idle_grace=5)
    async with ends_in_order(any_web), contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(any_web.client()) for _ in range(10)]
        for streams in clients[::2]:  # the others have never sent a request
            assert not (await ask(streams)).closes
        any_web.program.terminate()
        await asyncio.sleep(0.3)
        for streams in clients:
            assert_last(await ask(streams, "/late"), "/late")
            assert await streams[0].read() == b""


async def test_an_idle_connection_is_closed_when_its_grace_is_over(web: WebProgram) -> None:
    await web.start(idle_grace=0.6)
    async with ends_in_order(web), web.client() as streams:
        await ask(streams)
        loop = asyncio.get_running_loop()
        begun = loop.time()
        web.program.terminate()
        assert await streams[0].read() == b""
        assert 0.6 <= loop.time() - begun < 20


@pytest.mark.parametrize(
    ("number", "parameters"),
    [
        (signal.SIGINT, {"idle_grace": FOREVER, "shutdown_timeout": FOREVER}),
        (signal.SIGTERM, {"idle_grace": 0, "shutdown_timeout": FOREVER}),
        (signal.SIGTERM, {"idle_grace": FOREVER, "shutdown_timeout": 0.3}),
        (signal.SIGTERM, {"idle_grace": FOREVER, "stop_timeout": 2}),
        (signal.SIGTERM, {"idle_grace": FOREVER, "entrypoint": {"shutdown_timeout": 2}}),
    ],
    ids=[
        "after SIGINT",
        "without a grace",
        "past shutdown_timeout",
        "past stop_timeout",
        "past shutdown_timeout of the entrypoint",
    ],
)
async def test_an_idle_connection_does_not_delay_the_stop(
    web: WebProgram, number: signal.Signals, parameters: Any
) -> None:
    await web.start(**parameters)
    async with ends_in_order(web), web.client() as streams, web.client() as silent:
        await ask(streams)
        web.program.send_signal(number)
        assert await streams[0].read() == b""
        assert await silent[0].read() == b""


async def test_the_stop_waits_for_no_connection_that_is_closed(web: WebProgram) -> None:
    await web.start(idle_grace=FOREVER, shutdown_timeout=FOREVER)
    async with ends_in_order(web):
        async with web.client() as gone:
            await ask(gone)
        async with web.client() as first, web.client() as second:
            await ask(first)
            await web.terminate()
            assert_last(await ask(first))
            assert_last(await ask(second))


async def test_without_a_connection_the_stop_does_not_wait(web: WebProgram) -> None:
    await web.start(idle_grace=FOREVER, shutdown_timeout=FOREVER)
    async with ends_in_order(web):
        web.program.terminate()


async def test_pipelined_requests_are_answered_and_the_last_response_closes(
    web: WebProgram,
) -> None:
    await web.start(idle_grace=FOREVER)
    async with ends_in_order(web), web.client() as (reader, writer):
        writer.write(request("/slow", body=b"0.5"))
        await web.wait_for("request /slow")
        paths = [f"/{number}" for number in range(5)]
        writer.write(b"".join(map(request, paths[:3])))
        web.program.terminate()
        await asyncio.sleep(0.1)
        writer.write(b"".join(map(request, paths[3:])))
        answers = [await read_answer(reader) for _ in range(6)]
        assert [answer.body.decode() for answer in answers] == ["/slow", *paths]
        assert [answer.closes for answer in answers] == [False] * 5 + [True]
        assert await reader.read() == b""


async def test_a_client_whose_response_had_begun_may_send_another_request(
    web: WebProgram,
) -> None:
    """It was not told that its connection closes."""
    await web.start(idle_grace=1.5, shutdown_timeout=FOREVER)
    async with ends_in_order(web), web.client() as streams, web.client() as other:
        reader, writer = streams
        writer.write(request("/stream"))
        assert b"HTTP/1.1 200 OK" in await reader.readuntil(b"\r\n\r\n")
        web.program.terminate()
        await asyncio.sleep(1)
        assert_last(await ask(other, "/open"), "/open")
        body = b""
        while size := int(await reader.readline(), 16):
            body += await reader.readexactly(size)
            await reader.readline()
        await reader.readline()
        assert body == b"begun /stream"
        await asyncio.sleep(1)
        assert_last(await ask(streams, "/next"), "/next")


async def test_a_connection_that_comes_with_the_signal_is_served(any_web: WebProgram) -> None:
    """It waits to be accepted while the loop is blocked, and its request comes later."""
    await any_web.start(idle_grace=20)
    async with ends_in_order(any_web), contextlib.AsyncExitStack() as stack:
        _, writer = busy = await stack.enter_async_context(any_web.client())
        writer.write(request("/block", body=b"0.4"))
        await any_web.wait_for("request /block")
        connecting = [asyncio.create_task(any_web.connect()) for _ in range(5)]
        await asyncio.sleep(0.1)
        any_web.program.terminate()
        assert (await read_answer(busy[0])).body == b"/block"
        for streams in await asyncio.gather(*connecting):
            await asyncio.sleep(0.05)
            assert_last(await ask(streams, "/new"), "/new")
            streams[1].close()
        # The signal came while the first response was being made, so this may be another one.
        if not busy[0].at_eof():
            with contextlib.suppress(EOFError):
                assert_last(await ask(busy))


async def test_a_request_that_came_while_the_loop_was_blocked_is_answered(web: WebProgram) -> None:
    """The grace of its connection is over then, but the request came in time."""
    await web.start(idle_grace=0.3)
    async with ends_in_order(web), web.client() as streams, web.client() as busy:
        await ask(streams)
        await ask(busy)
        web.program.terminate()
        await asyncio.sleep(0.1)
        busy[1].write(request("/block", body=b"0.5"))
        await web.wait_for("request /block")
        assert_last(await ask(streams, "/late"), "/late")
        assert_last(await read_answer(busy[0]), "/block")


@pytest.mark.parametrize("size", [100_000, 20_000_000])
async def test_a_response_that_comes_before_the_end_of_an_upload_arrives(
    any_web: WebProgram, size: int
) -> None:
    """To close a socket with unread input resets the connection, and loses the response."""
    await any_web.start(idle_grace=5)
    async with ends_in_order(any_web), any_web.client() as (reader, writer):
        assert not (await ask((reader, writer))).closes
        await any_web.terminate()
        writer.write(request("/unread", body=bytes(size)))
        await writer.drain()
        assert_last(await read_answer(reader), "/unread")
        assert await reader.read() == b""


async def test_a_proxy_that_sends_its_header_after_the_signal_is_served(web: WebProgram) -> None:
    await web.start(idle_grace=5, proxy_protocol="v1")
    header = b"PROXY TCP4 192.0.2.1 192.0.2.2 40000 80\r\n"
    async with ends_in_order(web), web.client() as (reader, writer), web.client() as busy:
        busy[1].write(header + request("/slow", body=b"0.5"))
        await web.wait_for("request /slow")
        await web.terminate()
        writer.write(header + request("/late"))
        assert_last(await read_answer(reader), "/late")
        assert (await read_answer(busy[0])).body == b"/slow"


async def test_during_the_drain_delay_clients_are_served_as_before(web: WebProgram) -> None:
    await web.start(entrypoint={"drain_delay": 1.0})
    async with ends_in_order(web), web.client() as streams:
        await ask(streams)
        web.program.terminate()
        await asyncio.sleep(0.5)
        assert not (await ask(streams)).closes
        async with web.client() as new:
            assert not (await ask(new, "/new")).closes
        await asyncio.sleep(0.8)
        assert_last(await ask(streams))


async def test_a_stop_of_one_service_closes_idle_connections_at_once() -> None:
    service = AIOHTTPService("127.0.0.1", 0, app=Application, idle_grace=FOREVER)
    async with entrypoint(service, log_config=False, catch_signals=()) as ep:
        reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
        await ep.stop_services(service)
        assert await reader.read() == b""
        writer.close()

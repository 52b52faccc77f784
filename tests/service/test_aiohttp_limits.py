"""Laws of max_connections, keepalive and the counters of the web services, on each kind of loop."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import pytest

pytest.importorskip("aiohttp")

from svcrun._net.listener import Listener
from svcrun.service._accepting import Accepting
from tests.conftest import Certificates
from tests.service.web_services import KINDS, Kind, running
from tests.service.webs import read_answer, request
from tests.support import eventually

WAITING = "further clients wait to be accepted"


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, certificates: Certificates) -> Kind:
    """Each web service in turn."""
    name, _, tls = request.param.partition("-")
    return Kind(name, certificates if tls else None)


@contextlib.contextmanager
def silent_client(service: Accepting) -> Iterator[socket.socket]:
    """Connect a socket that sends nothing."""
    assert service.socket is not None
    with socket.create_connection(service.socket.getsockname(), 30) as sock:
        yield sock


async def let_wait() -> None:
    """Run the loop for as many iterations as a server takes to accept a client that waits."""
    for _ in range(20):
        await asyncio.sleep(0.001)


async def test_a_client_beyond_the_maximum_waits_until_a_connection_ends(
    kind: Kind, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(kind.service(max_connections=1)) as service:
        async with kind.web.client(service) as (reader, writer):
            writer.write(request())
            assert (await read_answer(reader)).body == b"hello"
            assert service.open_connections == 1
            assert WAITING not in caplog.text
            late = asyncio.create_task(kind.ask(service))
            await let_wait()
            writer.write(request())
            assert (await read_answer(reader)).body == b"hello"
            assert not late.done()
            assert service.accepted == 1
        assert await late == b"hello"
        assert service.accepted == 2
        await eventually(lambda: service.open_connections == 0)
    assert caplog.text.count(WAITING) == 1


async def test_a_client_that_sends_nothing_counts_and_makes_room_when_it_disconnects(
    kind: Kind,
) -> None:
    async with running(kind.service(max_connections=2)) as service:
        with silent_client(service), silent_client(service):
            await eventually(lambda: service.open_connections == 2)
            late = asyncio.create_task(kind.ask(service))
            await let_wait()
            assert service.accepted == 2
        assert await late == b"hello"
        assert service.refused == (2 if kind.web.is_tls else 0)


async def test_all_of_many_clients_are_answered_with_few_connections_at_a_time(kind: Kind) -> None:
    async with running(kind.service(max_connections=3)) as service, asyncio.timeout(60):
        answers = await asyncio.gather(*(kind.ask(service) for _ in range(40)))
        assert answers == [b"hello"] * 40
        assert (service.accepted, service.refused) == (40, 0)


async def test_a_stop_at_the_maximum_answers_the_requests_of_clients_that_wait() -> None:
    for name in dict.fromkeys(one.partition("-")[0] for one in KINDS):
        kind = Kind(name, None)
        async with running(kind.service(max_connections=1)) as service:
            with silent_client(service):
                await eventually(lambda: service.accepted == 1)
                late = [asyncio.create_task(kind.ask(service)) for _ in range(10)]
                await let_wait()
                assert service.accepted == 1
                await service.stop()
                assert await asyncio.gather(*late) == [b"hello"] * 10
        assert service.open_connections == 0


async def test_a_service_stopped_at_the_maximum_accepts_after_its_next_start(kind: Kind) -> None:
    service = kind.service(max_connections=1)
    for number in (1, 2):
        async with running(service):
            with silent_client(service):
                await eventually(lambda: service.open_connections == 1)
        async with running(service):
            assert await kind.ask(service) == b"hello"
        assert service.accepted == 2 * number
        assert service.open_connections == 0


async def test_a_service_without_a_maximum_counts_and_accepts_as_the_loop_does_best(
    kind: Kind,
) -> None:
    async with running(kind.service()) as service:
        for _ in range(3):
            assert await kind.ask(service) == b"hello"
        assert (service.accepted, service.refused) == (3, 0)
        await eventually(lambda: service.open_connections == 0)
    is_own = isinstance(asyncio.get_running_loop(), asyncio.SelectorEventLoop)
    if kind.name == "aiohttp":
        async with running(kind.service()) as service:
            assert isinstance(service.site._listener, Listener) == is_own


async def test_a_failed_handshake_is_refused(certificates: Certificates) -> None:
    for name in dict.fromkeys(one.partition("-")[0] for one in KINDS):
        kind = Kind(name, certificates)
        async with running(kind.service()) as service:
            with silent_client(service) as sock:
                sock.send(b"GET / HTTP/1.1\r\n\r\n")
                await eventually(lambda: service.refused == 1)
            assert await kind.ask(service) == b"hello"
        assert (service.accepted, service.refused) == (2, 1)


async def test_a_client_that_resets_its_connection_in_the_handshake_is_refused(
    certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    """On uvloop, the transport does not know the address any more, and raises if asked."""
    for name in dict.fromkeys(one.partition("-")[0] for one in KINDS):
        async with running(Kind(name, certificates).service()) as service:
            for number in (1, 2, 3):
                with silent_client(service) as sock:
                    sock.send(b"no TLS")
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                await eventually(lambda: service.refused == number)  # noqa: B023 - in this round
    assert not [one for one in caplog.records if one.name == "asyncio"]


@pytest.mark.parametrize("maximum", [None, 5])
async def test_tcp_checks_accepted_connections_after_that_time(
    kind: Kind, maximum: int | None
) -> None:
    async with running(kind.service(keepalive=42, max_connections=maximum)) as service:
        idle = service.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
        assert idle == 42
        assert service.socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert await kind.ask(service) == b"hello"


@pytest.mark.parametrize("parameter", ["max_connections", "keepalive"])
def test_a_wrong_value_is_refused_at_construction(kind: Kind, parameter: str) -> None:
    with pytest.raises(ValueError, match=rf"{parameter} must be .*, not -1"):
        kind.service(**{parameter: -1})

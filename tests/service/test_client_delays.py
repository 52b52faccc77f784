"""Laws of the delays between the attempts of clients, in virtual time (C43, C22a)."""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any

import pytest

from svcrun.service.tcp import RobustTCPClient, TCPClient
from tests.support_clock import run_virtual

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]

PORT = 9  # the clients below connect to nothing, unless they get a server


class Attempts:
    """Replace the attempts of a client, and record their times.

    :param succeeds: whether the attempt of a number, from 0 on, succeeds.
    """

    def __init__(self, client: Any, succeeds: Callable[[int], bool] = lambda _: False) -> None:
        self.times: list[float] = []
        self._succeeds = succeeds
        client._svcrun_open = self._attempt

    @property
    def delays(self) -> list[float]:
        """The seconds between the attempts."""
        return [later - earlier for earlier, later in pairwise(self.times)]

    async def _attempt(self, *_: object) -> Streams:
        loop = asyncio.get_running_loop()
        self.times.append(loop.time())
        if not self._succeeds(len(self.times) - 1):
            raise ConnectionRefusedError(111, "Connection refused")
        ours, theirs = socket.socketpair()
        theirs.close()
        return await asyncio.open_unix_connection(sock=ours)


class Plain(TCPClient):
    """A client that does nothing with its connection."""

    async def handle_connection(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None: ...


class Robust(RobustTCPClient):
    """A client that keeps each connection for `lasts` seconds."""

    lasts: float = 0

    async def handle_connection(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await asyncio.sleep(self.lasts)


def run_for(seconds: float, start: Callable[[], Awaitable[object]]) -> None:
    """Start a client and cancel its start after `seconds` of virtual time."""

    async def main() -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await start()

    run_virtual(main())


def fits(delay: float, expected: float) -> bool:
    """Return whether `delay` is `expected` less at most a tenth."""
    return 0.9 * expected <= delay <= expected + 1e-6


def test_delays_grow_by_half_up_to_a_minute_less_a_tenth_at_most() -> None:
    client = Plain("localhost", PORT, connect_attempts=12)
    attempts = Attempts(client)

    async def main() -> None:
        with pytest.raises(ConnectionRefusedError):
            await client.start()

    run_virtual(main())
    expected = [min(60, 3 * 1.5**number) for number in range(11)]
    assert len(attempts.delays) == len(expected)
    assert all(map(fits, attempts.delays, expected)), attempts.delays
    assert (
        len({delay / wanted for delay, wanted in zip(attempts.delays, expected, strict=True)}) > 1
    )


def test_the_parameters_of_a_plain_client_set_attempts_and_first_delay() -> None:
    client = Plain("localhost", PORT, connect_attempts=3, connect_retry_timeout=0.5)
    attempts = Attempts(client)

    async def main() -> None:
        with pytest.raises(ConnectionRefusedError):
            await client.start()

    run_virtual(main())
    assert len(attempts.times) == 3
    assert all(map(fits, attempts.delays, [0.5, 0.75]))


def test_a_robust_client_makes_attempts_without_end() -> None:
    client = Robust("localhost", PORT, connect_attempts=1)
    attempts = Attempts(client)
    run_for(86_400, client.start)
    assert 86_400 / 60 <= len(attempts.times) <= 86_400 / 54 + 10


def test_a_lost_connection_is_followed_by_reconnect_timeout_and_growth() -> None:
    client = Robust("localhost", PORT, lasts=100, reconnect_timeout=2)
    attempts = Attempts(client, lambda number: number == 0)
    run_for(115, client.start)
    first, *others = attempts.delays
    assert fits(first - 100, 2)
    assert all(map(fits, others, [3, 4.5]))


def test_delays_start_anew_after_a_connection_longer_than_the_delay_before_it() -> None:
    client = Robust("localhost", PORT, lasts=30, reconnect_timeout=2, connect_retry_timeout=2)
    attempts = Attempts(client, lambda number: number >= 4)
    run_for(200, client.start)
    assert all(map(fits, attempts.delays[:4], [2, 3, 4.5, 6.75]))
    assert all(fits(delay - 30, 2) for delay in attempts.delays[4:])
    assert len(attempts.delays) > 6


def test_delays_grow_on_while_connections_are_shorter_than_the_delay_before_them() -> None:
    client = Robust("localhost", PORT, lasts=1, reconnect_timeout=2)
    attempts = Attempts(client, lambda _: True)
    run_for(600, client.start)
    # The first connection has no delay before it.
    expected = [min(60, 2 * 1.5**number) for number in range(len(attempts.delays))]
    assert all(
        fits(delay - 1, wanted) for delay, wanted in zip(attempts.delays, expected, strict=True)
    )
    assert attempts.delays[-1] > 50


@pytest.mark.parametrize("lasts", [0, 0.001])
def test_a_robust_client_waits_between_any_two_attempts(lasts: float) -> None:
    client = Robust("localhost", PORT, lasts=lasts, reconnect_timeout=0, connect_retry_timeout=0)
    attempts = Attempts(client, lambda number: number % 2 == 0)
    run_for(1, client.start)
    assert 10 < len(attempts.times) < 120
    assert all(delay >= 0.009 for delay in attempts.delays)


def test_a_new_start_begins_with_the_first_delay() -> None:
    client = Robust("localhost", PORT)
    attempts = Attempts(client)
    run_for(100, client.start)
    before = len(attempts.times)
    run_for(20, client.start)
    first, second = attempts.delays[before : before + 2]
    assert fits(first, 3)
    assert fits(second, 4.5)


def test_ten_thousand_reconnects_leave_nothing_behind() -> None:
    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        count = 0
        done = asyncio.Event()

        class Client(RobustTCPClient):
            async def handle_connection(
                self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
            ) -> None:
                nonlocal count
                assert await reader.read() == b""
                count += 1
                if count == 10_000:
                    done.set()

        host, port = server.sockets[0].getsockname()
        client = Client(host, port, reconnect_timeout=0.1)
        start = asyncio.create_task(client.start())
        await done.wait()
        await client.stop()
        await start
        assert not client.tasks
        server.close()
        await server.wait_closed()

    run_virtual(main())

"""Laws of the pauses in which a thread has the interpreter's lock."""

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from svcrun._health import loop_pause
from svcrun._health.loop_pause import LoopPause


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pause for as long as a busy machine may need."""
    monkeypatch.setattr(loop_pause, "LIMIT", 20.0)
    monkeypatch.setattr(loop_pause, "SHARE", 1000.0)


@pytest.fixture
def sock() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as found:
        yield found


@pytest_asyncio.fixture
async def pause(sock: socket.socket) -> AsyncIterator[LoopPause]:
    found = LoopPause(asyncio.get_running_loop(), sock)
    found.open()
    yield found
    found.close()


async def test_the_loop_does_not_turn_until_the_thread_is_done(pause: LoopPause) -> None:
    seen: list[int] = []

    def work() -> None:
        pause.request()
        before = ticks
        time.sleep(0.1)
        seen.append(ticks - before)
        pause.end()

    ticks = 0
    thread = threading.Thread(target=work)
    thread.start()
    while thread.is_alive():
        await asyncio.sleep(0)
        ticks += 1
    # The first turns may come before the loop has noticed the request.
    (count,) = seen
    assert count <= 2
    assert ticks > count


async def test_a_client_that_connects_makes_the_loop_pause(
    pause: LoopPause, sock: socket.socket
) -> None:
    seen: list[int] = []

    def work() -> None:
        client = socket.create_connection(sock.getsockname())
        time.sleep(0.1)
        before = ticks
        time.sleep(0.1)
        seen.append(ticks - before)
        sock.accept()[0].close()
        pause.end()
        client.close()

    ticks = 0
    thread = threading.Thread(target=work)
    thread.start()
    while thread.is_alive():
        await asyncio.sleep(0)
        ticks += 1
    assert seen == [0]


async def test_a_thread_that_is_done_before_the_pause_costs_no_time(pause: LoopPause) -> None:
    pause.request()
    pause.end()
    await asyncio.sleep(0)
    await asyncio.sleep(0)  # with a limit of 20 seconds


async def test_a_pause_ends_at_its_limit_and_goes_on_later(
    pause: LoopPause, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_pause, "LIMIT", 0.01)
    pauses = []
    wait = threading.Event.wait

    class Counting(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            pauses.append(timeout)
            return wait(self, timeout)

    pause._is_done = Counting()
    pause.request()
    async with asyncio.timeout(20):
        while len(pauses) < 3:  # noqa: ASYNC110 - the turns are the point
            await asyncio.sleep(0)
    pause.end()


async def test_it_can_be_closed_during_a_request_and_after_the_loop(sock: socket.socket) -> None:
    pause = LoopPause(asyncio.get_running_loop(), sock)
    pause.open()
    pause.request()
    pause.close()
    await asyncio.sleep(0)
    await asyncio.to_thread(closed_loop, sock)


def closed_loop(sock: socket.socket) -> None:
    loop = asyncio.new_event_loop()
    pause = LoopPause(loop, sock)
    loop.close()
    pause.request()
    pause.end()
    pause.close()

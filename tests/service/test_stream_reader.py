"""Laws of the reader: it behaves like asyncio's own."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from svcrun._net.connection import PlainConnection
from svcrun._net.connections import Connections
from svcrun._net.stream_reader import Reader
from svcrun.service.tcp import TCPServer
from tests.support import examples

LIMIT = 8

Step = tuple[str, Any]


class Server(TCPServer):
    """The owner of a connection."""

    async def handle_client(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Never called."""


class Throttle(asyncio.ReadTransport):
    """A transport that records whether it is paused."""

    def __init__(self) -> None:
        super().__init__()
        self.reading = True

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading
        self.reading = True


def make_reader() -> Reader:
    """Return a reader of a connection without a peer, in the running loop."""
    clients = Connections(Server("127.0.0.1", 0))
    clients.loop, clients.limit = asyncio.get_running_loop(), LIMIT
    return PlainConnection(clients).reader


async def outcome(reading: Coroutine[Any, Any, bytes]) -> Any:
    """Return the result or exception of a read, in a form that can be compared."""
    try:
        return await reading
    except asyncio.IncompleteReadError as error:
        return type(error), error.partial, error.expected
    except asyncio.LimitOverrunError as error:
        return type(error), error.args, error.consumed
    except (ValueError, OSError) as error:
        return type(error), error.args


async def play(reader: asyncio.StreamReader, steps: list[Step]) -> list[Any]:
    """Feed and read as the steps say; return the result of each read."""
    throttle = Throttle()
    reader.set_transport(throttle)
    results: list[Any] = []
    pending: asyncio.Task[Any] | None = None
    ended = False

    async def settle() -> None:
        nonlocal pending
        for _ in range(4):
            await asyncio.sleep(0)
        if pending is not None and pending.done():
            results.append(pending.result())
            pending = None

    for name, argument in steps:
        if name == "feed":
            if not ended and throttle.reading:
                reader.feed_data(argument)
        elif name == "eof":
            reader.feed_eof()
            ended = True
        elif name == "error":
            reader.set_exception(ConnectionResetError("gone"))
        elif name == "cancel":
            if pending is not None:
                pending.cancel()
                await asyncio.wait((pending,))
                pending = None
        elif pending is None:
            call: Callable[..., Coroutine[Any, Any, bytes]] = getattr(reader, name)
            reading = call() if argument is None else call(argument)
            pending = asyncio.ensure_future(outcome(reading))
        await settle()
        results.append(("at_eof", reader.at_eof(), "reading", throttle.reading))
    if pending is not None:
        pending.cancel()
        await asyncio.wait((pending,))
        results.append("waits")
    return results


chunks = st.lists(st.sampled_from([b"a", b"bc", b"\n", b"\r\n", b"x\n", b"0123456789"]), max_size=4)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("feed"), chunks.map(b"".join)),
        st.tuples(st.just("readline"), st.none()),
        st.tuples(st.just("readuntil"), st.sampled_from([b"\n", b"\r\n", b"bca"])),
        st.tuples(st.just("read"), st.sampled_from([-1, 0, 1, 3, 100])),
        st.tuples(st.just("readexactly"), st.sampled_from([-1, 0, 1, 2, 5, 30])),
        st.tuples(st.just("cancel"), st.none()),
        st.tuples(st.just("eof"), st.none()),
        st.tuples(st.just("error"), st.none()),
    ),
    max_size=14,
)


@settings(max_examples=examples(300))
@given(steps)
def test_every_read_returns_the_result_of_asyncios_reader(steps: list[Step]) -> None:
    """C27."""

    async def main() -> tuple[list[Any], list[Any]]:
        return (
            await play(asyncio.StreamReader(limit=LIMIT), steps),
            await play(make_reader(), steps),
        )

    expected, found = asyncio.run(main())
    assert found == expected


async def test_the_first_of_several_separators_ends_a_read() -> None:
    reader = make_reader()
    reader.feed_data(b"a;b\r\nc")
    assert await reader.readuntil((b"\r\n", b";")) == b"a;"
    assert await reader.readuntil((b"\r\n", b";")) == b"b\r\n"
    with pytest.raises(ValueError, match="at least one element"):
        await reader.readuntil(())
    with pytest.raises(ValueError, match="at least one-byte"):
        await reader.readuntil((b"", b";"))


async def test_lines_can_be_iterated_over() -> None:
    reader = make_reader()
    reader.feed_data(b"1\n2\n3")
    reader.feed_eof()
    assert [line async for line in reader] == [b"1\n", b"2\n", b"3"]


async def test_a_waiting_task_is_resumed_within_the_callback_that_received_its_data() -> None:
    reader = make_reader()
    got: list[bytes] = []

    async def read() -> None:
        got.append(await reader.readline())
        got.append(await reader.readline())
        got.append(await reader.readexactly(3))
        got.append(await reader.read(100))

    task = asyncio.create_task(read())
    await asyncio.sleep(0)

    def receive() -> None:
        for data in (b"line\n", b"abc", b"rest"):
            reader.data_received(data)
            assert got[-1] is data
        done.set()

    done = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.call_soon(reader.data_received, b"first\n")  # shows that it is the only one
    loop.call_soon(loop.call_soon, receive)
    await asyncio.wait_for(done.wait(), 30)
    await task


@pytest.mark.parametrize("method", ["readline", "read", "readexactly", "readuntil"])
async def test_two_tasks_can_not_wait_at_the_same_time(method: str) -> None:
    reader = make_reader()
    task = asyncio.create_task(reader.readline())
    await asyncio.sleep(0)
    arguments = (3,) if method == "readexactly" else ()
    with pytest.raises(RuntimeError, match="already waiting for incoming data"):
        await getattr(reader, method)(*arguments)
    reader.feed_data(b"first\n")
    assert await task == b"first\n"


async def test_data_for_a_cancelled_task_goes_to_the_next_read() -> None:
    reader = make_reader()
    task = asyncio.create_task(reader.readline())
    await asyncio.sleep(0)
    # Fed within a task, so that the waiting one can not run now, and is cancelled before it does.
    reader.feed_data(b"one\n")
    reader.feed_data(b"two\n")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await reader.readline() == b"one\n"
    assert await reader.readline() == b"two\n"


async def test_a_read_can_run_as_a_task() -> None:
    reader = make_reader()
    task = asyncio.create_task(reader.read(3))
    await asyncio.sleep(0)
    reader.feed_data(b"abc")
    assert await task == b"abc"


async def test_the_representation_shows_the_state_of_the_reader() -> None:
    reader = make_reader()
    assert repr(reader) == "<Reader>"
    reader.feed_data(b"abc")
    reader.feed_eof()
    reader.set_exception(OSError(5, "broken"))
    assert repr(reader) == "<Reader 3 bytes eof exception=OSError(5, 'broken')>"

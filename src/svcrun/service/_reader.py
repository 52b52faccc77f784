"""A stream reader that resumes who waits for its data at once."""

import asyncio
from typing import TYPE_CHECKING, Any, Final

from svcrun.eager import Waiter

if TYPE_CHECKING:
    from svcrun.service._connection import Connection

__all__ = ("Reader",)

# What the waiting task wants; nobody waits while it is NOTHING.
NOTHING: Final = 0
LINE: Final = 1
EXACTLY: Final = 2
AT_MOST: Final = 3
MORE: Final = 4

# Reads in a row that find the end of the stream before the handler that does not see it is ended.
MAX_READS_AT_EOF: Final = 16


class Reader(asyncio.StreamReader):
    """What a handler reads from: an :class:`asyncio.StreamReader` to its user, quicker inside.

    The data that a waiting task asked for is given to it directly if it comes as one chunk, and the task is resumed
    within the callback of the transport. Nothing of the base class is used but its type.

    Beyond what asyncio does, a read

    * lets the loop turn if it finds the end of the stream, and ends a handler that reads on and on there;
    * waits while too much of what the handler wrote is unsent, which bounds the memory of a handler that never drains;
    * ends the handler if the server is stopping and it would have to wait.
    """

    def __init__(self, connection: "Connection", loop: asyncio.AbstractEventLoop, limit: int) -> None:
        # The base class is not initialised: it would make what is replaced here.
        self._connection = connection
        self._transport: Any = None
        self._limit = limit
        self._buffer = bytearray()
        self._eof = False
        self._error: BaseException | None = None
        self._reading_paused = False
        # Whether a read has to look at more than the buffer.
        self.special = False
        self._reads_at_eof = 0
        self._waiter = Waiter(loop)
        self._want = NOTHING
        self._count = 0
        self._given: bytes | None = None

    def __repr__(self) -> str:
        state = f"{len(self._buffer)} bytes"
        if self._eof:
            state += " eof"
        if self._error is not None:
            state += f" {self._error!r}"
        return f"<{type(self).__name__} {state}>"

    @property
    def waiting(self) -> bool:
        """Whether a task waits for the next bytes."""
        return self._want != NOTHING

    # What the connection calls.

    def data_received(self, data: bytes) -> None:
        """Take what came: give it to the waiting task, if it is just what it wants, or buffer it."""
        want = self._want
        buffer = self._buffer
        if want == NOTHING:
            buffer += data
            if len(buffer) > 2 * self._limit:
                self._pause_reading()
            return

        size = len(data)
        if want == LINE:
            end = data.find(b"\n") + 1
            if end == size and not buffer and end <= self._limit + 1:
                self._given = data
            else:
                buffer += data
                if end == 0 and len(buffer) <= self._limit:
                    return
        elif not buffer and (want == AT_MOST and size <= self._count or want == EXACTLY and size == self._count):
            self._given = data
        else:
            buffer += data
            if want == EXACTLY and len(buffer) < self._count:
                return
        self._want = NOTHING
        self._waiter.wake()
        if len(buffer) > 2 * self._limit and self._want == NOTHING:
            self._pause_reading()

    def feed_data(self, data: bytes) -> None:
        """Take `data` as if it had been received."""
        if data:
            self.data_received(bytes(data))

    def feed_eof(self) -> None:
        """Take the end of the stream."""
        self._eof = self.special = True
        self._wake()

    def set_exception(self, exc: BaseException) -> None:
        """Let this and all following reads raise `exc`."""
        self._error = exc
        self.special = True
        self._wake()

    def exception(self) -> BaseException | None:
        """Return what reads raise, None if nothing went wrong."""
        return self._error

    def set_transport(self, transport: Any) -> None:
        """Pause and resume `transport` from now on."""
        self._transport = transport

    def at_eof(self) -> bool:
        """Tell whether everything was read."""
        return self._eof and not self._buffer

    def _wake(self) -> None:
        if self._want != NOTHING:
            self._want = NOTHING
            self._waiter.wake()

    def _pause_reading(self) -> None:
        if not self._reading_paused and self._transport is not None:
            try:
                self._transport.pause_reading()
            except NotImplementedError:
                self._transport = None
            else:
                self._reading_paused = True

    def _resume_reading(self) -> None:
        if self._reading_paused and len(self._buffer) <= self._limit:
            self._reading_paused = False
            self._transport.resume_reading()

    # What the handler calls.

    async def readline(self) -> bytes:
        if not self._buffer and not self.special:
            if self._want != NOTHING:
                raise self._busy("readline")
            self._want = LINE
            try:
                await self._waiter
            except BaseException:
                self._abandon()
                raise
            line = self._given
            if line is not None:
                self._given = None
                return line
        try:
            return await self.readuntil(b"\n")
        except asyncio.IncompleteReadError as error:
            return error.partial
        except asyncio.LimitOverrunError as error:
            if self._buffer.startswith(b"\n", error.consumed):
                del self._buffer[: error.consumed + 1]
            else:
                self._buffer.clear()
            self._resume_reading()
            raise ValueError(error.args[0]) from None

    async def readuntil(self, separator: Any = b"\n") -> bytes:
        separators = sorted(separator, key=len) if isinstance(separator, tuple) else [separator]
        if not separators:
            raise ValueError("Separator should contain at least one element")
        shortest, longest = len(separators[0]), len(separators[-1])
        if shortest == 0:
            raise ValueError("Separator should be at least one-byte string")
        if self.special:
            await self._attend()

        buffer = self._buffer
        offset = 0
        while True:
            if len(buffer) - offset >= shortest:
                start = end = -1
                for each in separators:
                    found = buffer.find(each, offset)
                    if found != -1 and (end == -1 or found + len(each) < end):
                        start, end = found, found + len(each)
                if end != -1:
                    break
                offset = max(0, len(buffer) + 1 - longest)
                if offset > self._limit:
                    raise asyncio.LimitOverrunError(
                        "Separator is not found, and chunk exceed the limit", offset
                    )
            if self._eof:
                rest = bytes(buffer)
                buffer.clear()
                raise asyncio.IncompleteReadError(rest, None)
            await self._wait("readuntil", LINE if separators == [b"\n"] else MORE)

        if start > self._limit:
            raise asyncio.LimitOverrunError(
                "Separator is found, but chunk is longer than limit", start
            )
        if end == len(buffer):
            data = bytes(buffer)
            buffer.clear()
        else:
            data = bytes(memoryview(buffer)[:end])
            del buffer[:end]
        self._resume_reading()
        return data

    async def read(self, n: int = -1) -> bytes:
        if self.special and n != 0:
            await self._attend()
        if self._error is not None:
            raise self._error
        if n == 0:
            return b""
        buffer = self._buffer
        if n < 0:
            blocks = []
            while not (self._eof and not buffer):
                if not buffer:
                    await self._wait("read", MORE)
                blocks.append(bytes(buffer))
                buffer.clear()
                self._resume_reading()
            return b"".join(blocks)

        if not buffer and not self._eof:
            await self._wait("read", AT_MOST, n)
            data = self._given
            if data is not None:
                self._given = None
                return data
        if len(buffer) <= n:
            data = bytes(buffer)
            buffer.clear()
        else:
            data = bytes(memoryview(buffer)[:n])
            del buffer[:n]
        self._resume_reading()
        return data

    async def readexactly(self, n: int) -> bytes:
        if n < 0:
            raise ValueError("readexactly size can not be less than zero")
        if self.special and n != 0:
            await self._attend()
        if self._error is not None:
            raise self._error
        if n == 0:
            return b""
        buffer = self._buffer
        while len(buffer) < n:
            if self._eof:
                rest = bytes(buffer)
                buffer.clear()
                raise asyncio.IncompleteReadError(rest, n)
            await self._wait("readexactly", EXACTLY, n)
            data = self._given
            if data is not None:
                self._given = None
                return data
        if len(buffer) == n:
            data = bytes(buffer)
            buffer.clear()
        else:
            data = bytes(memoryview(buffer)[:n])
            del buffer[:n]
        self._resume_reading()
        return data

    async def __anext__(self) -> bytes:
        line = await self.readline()
        if not line:
            raise StopAsyncIteration
        return line

    def _busy(self, method: str) -> RuntimeError:
        return RuntimeError(
            f"{method}() called while another coroutine is already waiting for incoming data"
        )

    async def _wait(self, method: str, want: int, count: int = 0) -> None:
        """Wait for more data, of which some may be put into `_given` instead of the buffer."""
        if self._want != NOTHING:
            raise self._busy(method)
        if self._reading_paused:
            # What is wanted is more than is buffered: to wait without reading would be for ever.
            self._reading_paused = False
            self._transport.resume_reading()
        self._want = want
        self._count = count
        try:
            await self._waiter
        except BaseException:
            self._abandon()
            raise
        if self._error is not None:
            raise self._error

    def _abandon(self) -> None:
        """Put back what a task was given that does not take it any more."""
        self._want = NOTHING
        if self._given is not None:
            self._buffer[:0] = self._given
            self._given = None

    async def _attend(self) -> None:
        if self._error is not None:
            raise self._error

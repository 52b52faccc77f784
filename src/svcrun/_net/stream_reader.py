"""A stream reader that passes data directly to the task that waits for it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from svcrun._util.eager import Waiter

if TYPE_CHECKING:
    from svcrun._net.connection import Connection

__all__ = ("Reader",)

# What a waiting task wants. Nobody waits while it is NOTHING.
NOTHING: Final = 0
LINE: Final = 1
EXACTLY: Final = 2
AT_MOST: Final = 3
ANYTHING: Final = 4

# A handler that does not look for the end of the stream finds it this often before it is ended.
MAX_READS_AT_EOF: Final = 16


class Reader(asyncio.StreamReader):
    """What a handler reads from: to its user an :class:`asyncio.StreamReader`, inside quicker.

    If the data for a waiting task arrives as one chunk, it bypasses the buffer, and the server's
    :class:`ResumeQueue` resumes the task. The base class provides the type only.

    Beyond what asyncio does, a read

    * lets the loop turn if it finds the end of the stream, and in the end cancels a task that
      reads there again and again: it would block the loop for ever;
    * waits while too much of what was written is unsent, so that the memory of a handler that
      never drains is bounded;
    * cancels the task if it would have to wait while the server stops.
    """

    # Defaults on the class, so that creating a reader is fast. The interpreter does not specialize
    # access to an attribute of both class and instance, so only rarely changed ones have a default.
    _reads_at_eof = 0
    _held = False
    _ending = False
    # What is paused when the buffer is full.
    transport: Any = None

    def __init__(self, connection: Connection, loop: asyncio.AbstractEventLoop, limit: int) -> None:
        # Not super().__init__(): it would make what is replaced here.
        self._connection = connection
        self._resume_queue = connection.server.resume_queue
        self._limit = limit
        self._buffer = bytearray()
        self._waiter = Waiter(loop)
        self._want = NOTHING
        self._count = 0
        self._given: bytes | None = None
        self._eof = False
        self._error: BaseException | None = None
        self._paused = False
        # Whether a read has to check more than the buffer: an end, an error, unsent data, a stop.
        self._special = False

    def __repr__(self) -> str:
        state = [f"{len(self._buffer)} bytes"] if self._buffer else []
        if self._eof:
            state.append("eof")
        if self._error is not None:
            state.append(f"exception={self._error!r}")
        if self._paused:
            state.append("paused")
        return f"<{' '.join([type(self).__name__, *state])}>"

    # What the connection calls.

    @property
    def waiting(self) -> bool:
        """Whether a task waits here for its peer."""
        return self._want != NOTHING or self._held

    def data_received(self, data: bytes) -> None:
        """Give `data` to the waiting task if it is just what that wants, else buffer it."""
        want = self._want
        buffer = self._buffer
        if want == NOTHING:
            buffer += data
            if len(buffer) > 2 * self._limit:
                self._pause_reading()
            return

        if want == LINE:
            end = data.find(b"\n") + 1
            if end == len(data) and not buffer and end <= self._limit + 1:
                self._given = data
            else:
                buffer += data
                if end == 0 and len(buffer) <= self._limit:
                    return
        elif not buffer and (
            len(data) == self._count or (len(data) < self._count and want == AT_MOST)
        ):
            self._given = data
        else:
            buffer += data
            if want == EXACTLY and len(buffer) < self._count:
                return
        self._want = NOTHING
        self._resume_queue.resume(self._waiter)
        if len(buffer) > 2 * self._limit and self._want == NOTHING:
            self._pause_reading()

    def feed_data(self, data: Any) -> None:
        """Take `data` as if it had been received."""
        if data:
            self.data_received(bytes(data))

    def feed_eof(self) -> None:
        """Take the end of the stream."""
        if self._want == NOTHING:
            # Race: TLS closes the connection as soon as this returns. Resume a task that is still
            # in the queue now, so that it can send an answer.
            self._waiter.wake()
        self._eof = self._special = True
        self._wake()

    def set_exception(self, exc: BaseException) -> None:
        """Let this and all further reads raise `exc`."""
        self._error = exc
        self._special = True
        self._wake()

    def exception(self) -> BaseException | None:  # type: ignore[override]  # typeshed: Exception
        """Return what reads raise, None if nothing went wrong."""
        return self._error

    def set_transport(self, transport: Any) -> None:
        """Pause `transport` when the buffer is full, and resume it when there is room again."""
        self.transport = transport
        self._paused = False
        if len(self._buffer) > 2 * self._limit:
            self._pause_reading()

    def drop(self) -> int:
        """Forget what is buffered; return how many bytes that were."""
        dropped = len(self._buffer)
        self._buffer.clear()
        return dropped

    def at_eof(self) -> bool:
        """Tell whether all was read, to the end of the stream."""
        return self._eof and not self._buffer

    def look_up(self) -> None:
        """Let the next read look at more than the buffer: the connection has changed."""
        self._special = True

    def end(self) -> None:
        """Let what is buffered be read, but nobody wait for more."""
        self._ending = self._special = True

    def _wake(self) -> None:
        if self._want != NOTHING:
            self._want = NOTHING
            self._waiter.wake()

    def _pause_reading(self) -> None:
        if not self._paused and self.transport is not None:
            self._paused = True
            self.transport.pause_reading()

    def _resume_reading(self) -> None:
        """Read on if enough of the buffer was taken."""
        if self._paused and len(self._buffer) <= self._limit:
            self._paused = False
            self.transport.resume_reading()

    # What the handler calls.

    async def readline(self) -> bytes:
        """Read a line, with its end; less at the end of the stream.

        :raises ValueError: if the line is longer than the limit; it is dropped.
        """
        if not self._buffer and not self._special and self._want == NOTHING:
            # The same as what follows, without detours: this is where an idle handler waits.
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
            return await self._read_until([b"\n"], 1, 1)
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
        """Read up to and with `separator`, or the first of several in a tuple.

        :raises asyncio.IncompleteReadError: if the stream ends before.
        :raises asyncio.LimitOverrunError: if more than the limit comes before; it stays buffered.
        """
        separators = sorted(separator, key=len) if type(separator) is tuple else [separator]
        if not separators:
            raise ValueError("Separator should contain at least one element")
        shortest, longest = len(separators[0]), len(separators[-1])
        if shortest == 0:
            raise ValueError("Separator should be at least one-byte string")
        return await self._read_until(separators, shortest, longest)

    async def read(self, n: int = -1) -> bytes:
        """Read up to `n` bytes, as soon as there are any; without `n`, all to the end."""
        if self._error is not None:
            raise self._error
        if n == 0:
            return b""
        buffer = self._buffer
        if n < 0:
            blocks = []
            while block := await self.read(self._limit):
                blocks.append(block)
            return b"".join(blocks)

        if self._special:
            await self._attend()
        if not buffer and not self._eof:
            await self._wait("read", AT_MOST, n)
            data = self._given
            if data is not None:
                self._given = None
                return data
        return self._take(n)

    async def readexactly(self, n: int) -> bytes:
        """Read `n` bytes.

        :raises asyncio.IncompleteReadError: if the stream ends before.
        """
        if n < 0:
            raise ValueError("readexactly size can not be less than zero")
        if self._error is not None:
            raise self._error
        if n == 0:
            return b""
        if self._special:
            await self._attend()
        while len(self._buffer) < n:
            if self._eof:
                raise asyncio.IncompleteReadError(self._take_rest(), n)
            await self._wait("readexactly", EXACTLY, n)
            data = self._given
            if data is not None:
                self._given = None
                return data
        return self._take(n)

    async def __anext__(self) -> bytes:
        line = await self.readline()
        if not line:
            raise StopAsyncIteration
        return line

    async def _read_until(self, separators: list[bytes], shortest: int, longest: int) -> bytes:
        if self._special:
            await self._attend()
        if self._error is not None:
            raise self._error
        buffer = self._buffer
        offset = 0  # no separator begins before
        while True:
            if len(buffer) - offset >= shortest:
                start = end = -1
                for separator in separators:
                    found = buffer.find(separator, offset)
                    if found != -1 and (end == -1 or found + len(separator) < end):
                        start, end = found, found + len(separator)
                if end != -1:
                    break
                offset = max(0, len(buffer) + 1 - longest)
                if offset > self._limit:
                    raise asyncio.LimitOverrunError(
                        "Separator is not found, and chunk exceed the limit", offset
                    )
            if self._eof:
                raise asyncio.IncompleteReadError(self._take_rest(), None)
            await self._wait("readuntil", ANYTHING)

        if start > self._limit:
            raise asyncio.LimitOverrunError(
                "Separator is found, but chunk is longer than limit", start
            )
        return self._take(end)

    def _take(self, n: int) -> bytes:
        """Take up to `n` bytes out of the buffer."""
        buffer = self._buffer
        if len(buffer) <= n:
            data = bytes(buffer)
            buffer.clear()
        else:
            data = bytes(memoryview(buffer)[:n])
            del buffer[:n]
        if self._paused:
            self._resume_reading()
        return data

    def _take_rest(self) -> bytes:
        """Take what is left at the end of the stream; there is nothing to read on for."""
        data = bytes(self._buffer)
        self._buffer.clear()
        return data

    async def _wait(self, method: str, want: int, count: int = -1) -> None:
        """Wait for more data, which is then in the buffer, or all in `_given`."""
        if self._want != NOTHING:
            raise RuntimeError(
                f"{method}() called while another coroutine is already waiting for incoming data"
            )
        if self._ending:
            await asyncio.sleep(0)
            raise asyncio.CancelledError("the server stops")
        if self._paused:
            # More is wanted than is buffered at most: to wait without reading would be for ever.
            self._paused = False
            self.transport.resume_reading()
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
        """Put back what was given to a task that was cancelled before it could take it."""
        if self._given is None:
            self._want = NOTHING
        else:
            self._buffer[:0] = self._given
            self._given = None

    async def _attend(self) -> None:
        """Look at what is special about this read."""
        connection = self._connection
        if connection.paused:
            self._held = True
            try:
                await connection.relieved()
            finally:
                self._held = False
        if self._eof and not self._buffer and self._error is None:
            self._reads_at_eof += 1
            # A loop of reads that find the end must not keep the event loop from turning.
            await asyncio.sleep(0)
            if self._reads_at_eof > MAX_READS_AT_EOF:
                connection.log_end_ignored()
                raise asyncio.CancelledError("the peer has closed the connection")
        self._special = self._eof or self._ending or self._error is not None or connection.paused

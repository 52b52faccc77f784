"""Receive the messages of a web socket, even while the application does not."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import TYPE_CHECKING, Final

from aiohttp import WSCloseCode, WSMsgType

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiohttp import WSMessage, web

__all__ = ("Hearing",)

# Seconds without a call of next() after which a background task receives.
PAUSE: Final = 1.0

# The maximum of bytes that the background task buffers. Each message counts OVERHEAD bytes more
# than its length.
MOST: Final = 1 << 16
OVERHEAD: Final = 1 << 10

_DATA: Final = frozenset({WSMsgType.TEXT, WSMsgType.BINARY})


class Hearing:
    """Receive the messages of a web socket for its application.

    aiohttp answers a Ping or Close frame only during ``receive()``. An application that only sends
    would not answer a Ping, and so lose the client. When the application has not called
    :meth:`next` for a second, a background task receives and buffers messages.

    Invariant: one task at a time calls ``receive()``, since aiohttp accepts no second one.
    :meth:`next` waits for the background task, and the task ends after the message that it is
    receiving. So messages keep their order, and none is lost.

    :param request: the request that `socket` answers.
    :param socket: a prepared web socket with ``autoclose=False``.
    :param patience: seconds within which the client of a closing connection has to receive some of
        its output; None for no time limit.
    :param leave: called when the background task finds that the client has disconnected.
    """

    def __init__(
        self,
        request: web.BaseRequest,
        socket: web.WebSocketResponse,
        patience: float | None,
        leave: Callable[[], None],
    ) -> None:
        self._request = request
        self._socket = socket
        self._leave = leave
        self._loop = asyncio.get_running_loop()
        self._kept: deque[WSMessage] = deque()
        self._size = 0
        self._is_asked = False
        self._has_ended = False
        # The background task, and the timer that starts it.
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._asked_at = 0.0
        self._watch()
        # The number of bytes in the write buffer at the last check.
        self._unsent = 0
        self._check: asyncio.TimerHandle | None = None
        if patience is not None:
            self._check = self._loop.call_later(patience, self._check_output, patience)

    async def next(self) -> WSMessage:
        """Return the next message; only one call at a time.

        A cancelled call loses no message: the message stays in the buffer.
        """
        self._is_asked = True
        try:
            while not self._kept:
                if self._task is not None:
                    await asyncio.wait((self._task,))  # it ends with the next message
                else:
                    await self._receive()
            message = self._kept.popleft()
            self._size -= _weight(message)
            return message
        finally:
            self._is_asked = False
            self._watch()

    def end(self) -> None:
        """Stop receiving."""
        self._has_ended = True
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()

    def close(self) -> None:
        """Stop checking the output; call this when everything has been sent."""
        if self._check is not None:
            self._check.cancel()

    def _check_output(self, patience: float) -> None:
        """Abort a closing connection whose client receives nothing.

        aiohttp closes a connection whose client does not answer a Ping. If the client receives
        nothing, the close waits for the write buffer without end, and so do the calls of send().
        """
        transport = self._request.transport
        if transport is None:
            return
        if transport.is_closing():
            unsent = transport.get_write_buffer_size()
            if unsent == self._unsent:
                transport.abort()
                return
            self._unsent = unsent
        self._check = self._loop.call_later(patience, self._check_output, patience)

    def _watch(self) -> None:
        """Schedule the check whether the application has called :meth:`next`."""
        self._asked_at = self._loop.time()
        if self._timer is None and not self._has_ended:
            self._timer = self._loop.call_later(PAUSE, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._is_asked or self._has_ended or self._task is not None or self._size >= MOST:
            return  # next() schedules the check again
        left = self._asked_at + PAUSE - self._loop.time()
        if left > 0:
            self._timer = self._loop.call_later(left, self._look)
        else:
            self._task = self._loop.create_task(self._listen(), name="ASGI web socket")

    async def _listen(self) -> None:
        """Receive until the application calls :meth:`next`, or the buffer is full."""
        try:
            while not self._has_ended and self._size < MOST:
                await self._receive()
                if self._is_asked:
                    break
        finally:
            self._task = None
        if self._has_ended:
            self._leave()

    async def _receive(self) -> None:
        """Buffer the next message.

        Race: the task may be cancelled at each ``await``. The message is buffered before the next
        one, so it is not lost.
        """
        message = None
        while message is None:
            # The client may disconnect before the answer to its Ping is sent. Messages that it sent
            # before that are still to be received.
            with contextlib.suppress(ConnectionError):
                message = await self._socket.receive()
        self._kept.append(message)
        self._size += _weight(message)
        if message.type not in _DATA:
            self._has_ended = True
            if message.type is WSMsgType.CLOSE:
                await self._confirm(message.data)

    async def _confirm(self, code: int) -> None:
        """Answer a Close frame with its own code, unlike aiohttp."""
        if not code:
            code = WSCloseCode.OK
        elif code == WSCloseCode.ABNORMAL_CLOSURE:
            code = WSCloseCode.PROTOCOL_ERROR  # 1006 must not be sent, but aiohttp accepts it
        with contextlib.suppress(ConnectionError):
            await self._socket.close(code=code, drain=False)


def _weight(message: WSMessage) -> int:
    data = message.data
    return OVERHEAD + (len(data) if isinstance(data, str | bytes) else 0)

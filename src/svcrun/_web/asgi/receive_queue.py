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

__all__ = ("ReceiveQueue",)

# Seconds without a call of get() after which a background task receives.
PAUSE: Final = 1.0

# The maximum of bytes that the background task buffers. Each message counts OVERHEAD bytes more
# than its length.
MAX_SIZE: Final = 1 << 16
OVERHEAD: Final = 1 << 10

_DATA: Final = frozenset({WSMsgType.TEXT, WSMsgType.BINARY})


class ReceiveQueue:
    """Receive the messages of a web socket for its application.

    aiohttp answers a Ping or Close frame only during ``receive()``. An application that only sends
    would not answer a Ping, and so lose the client. When the application has not called
    :meth:`get` for a second, a background task receives and buffers messages.

    Invariant: one task at a time calls ``receive()``, since aiohttp accepts no second one.
    :meth:`get` waits for the background task, and the task ends after the message that it is
    receiving. So messages keep their order, and none is lost.

    :param request: the request that `socket` answers.
    :param socket: a prepared web socket with ``autoclose=False``.
    :param output_timeout: seconds within which the client of a closing connection has to receive
        some of its output; None for no time limit.
    :param on_disconnect: called when the background task finds that the client has disconnected.
    """

    def __init__(
        self,
        request: web.BaseRequest,
        socket: web.WebSocketResponse,
        output_timeout: float | None,
        on_disconnect: Callable[[], None],
    ) -> None:
        self._request = request
        self._socket = socket
        self._on_disconnect = on_disconnect
        self._loop = asyncio.get_running_loop()
        self._messages: deque[WSMessage] = deque()
        self._size = 0
        self._is_receiving = False
        self._has_ended = False
        # The background task, and the timer that starts it.
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._received_at = 0.0
        self._schedule_check()
        # The number of bytes in the write buffer at the last check.
        self._unsent = 0
        self._check: asyncio.TimerHandle | None = None
        if output_timeout is not None:
            self._check = self._loop.call_later(output_timeout, self._check_output, output_timeout)

    async def get(self) -> WSMessage:
        """Return the next message; only one call at a time.

        A cancelled call loses no message: the message stays in the buffer.
        """
        self._is_receiving = True
        try:
            while not self._messages:
                if self._task is not None:
                    await asyncio.wait((self._task,))  # it ends with the next message
                else:
                    await self._receive()
            message = self._messages.popleft()
            self._size -= _weight(message)
            return message
        finally:
            self._is_receiving = False
            self._schedule_check()

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

    def _check_output(self, output_timeout: float) -> None:
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
        self._check = self._loop.call_later(output_timeout, self._check_output, output_timeout)

    def _schedule_check(self) -> None:
        """Schedule the check whether the application has called :meth:`get`."""
        self._received_at = self._loop.time()
        if self._timer is None and not self._has_ended:
            self._timer = self._loop.call_later(PAUSE, self._check_receiving)

    def _check_receiving(self) -> None:
        self._timer = None
        if (
            self._is_receiving
            or self._has_ended
            or self._task is not None
            or self._size >= MAX_SIZE
        ):
            return  # get() schedules the check again
        left = self._received_at + PAUSE - self._loop.time()
        if left > 0:
            self._timer = self._loop.call_later(left, self._check_receiving)
        else:
            self._task = self._loop.create_task(
                self._receive_in_background(), name="ASGI web socket"
            )

    async def _receive_in_background(self) -> None:
        """Receive until the application calls :meth:`get`, or the buffer is full."""
        try:
            while not self._has_ended and self._size < MAX_SIZE:
                await self._receive()
                if self._is_receiving:
                    break
        finally:
            self._task = None
        if self._has_ended:
            self._on_disconnect()

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
        self._messages.append(message)
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

"""What the client of a web socket says, also while the application does not ask for it."""

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

# Seconds that an application may be busy before somebody else listens to the client.
PAUSE: Final = 1.0

# How much is kept for it meanwhile: bytes, where each message counts as some more than it is long.
MOST: Final = 1 << 16
OVERHEAD: Final = 1 << 10

_DATA: Final = frozenset({WSMsgType.TEXT, WSMsgType.BINARY})


class Hearing:
    """Hears the client of a web socket.

    aiohttp answers pings, and a close, only when somebody receives. An application that does
    nothing but send never does, and would lose each client that pings it; so there is another who
    receives when it has not done so for a while.

    :param request: the request that `socket` answers.
    :param socket: which has been prepared, and does not close itself.
    :param patience: seconds that a client has to take something of the output of a connection that
        is closing; None for no limit.
    :param leave: is called when the client is found to have gone.
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
        # Receives while nobody asks, and looks whether that is necessary.
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._asked_at = 0.0
        self._watch()
        # How much the client had still to take at the last check.
        self._unsent = 0
        self._check: asyncio.TimerHandle | None = None
        if patience is not None:
            self._check = self._loop.call_later(patience, self._check_output, patience)

    async def next(self) -> WSMessage:
        """Return the next message; only one call at a time.

        A call that is cancelled takes no message.
        """
        self._is_asked = True
        try:
            while not self._kept:
                if self._task is not None:
                    await asyncio.wait((self._task,))  # which ends by a message
                else:
                    await self._receive()
            message = self._kept.popleft()
            self._size -= _weight(message)
            return message
        finally:
            self._is_asked = False
            self._watch()

    def end(self) -> None:
        """Listen no more."""
        self._has_ended = True
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()

    def close(self) -> None:
        """Release the connection; nothing is sent any more."""
        if self._check is not None:
            self._check.cancel()

    def _check_output(self, patience: float) -> None:
        """Abort a connection that is closing and whose client takes nothing.

        aiohttp closes a connection whose client does not answer a ping. With output that is not
        taken, that never ends, nor do those who wait for the output: an answer to a ping, send().
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
        """Look a while later whether the application asks for something."""
        self._asked_at = self._loop.time()
        if self._timer is None and not self._has_ended:
            self._timer = self._loop.call_later(PAUSE, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._is_asked or self._has_ended or self._task is not None or self._size >= MOST:
            return  # next() looks again
        left = self._asked_at + PAUSE - self._loop.time()
        if left > 0:
            self._timer = self._loop.call_later(left, self._look)
        else:
            self._task = self._loop.create_task(self._listen(), name="ASGI web socket")

    async def _listen(self) -> None:
        """Receive until somebody asks for it, or it gets too much."""
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
        """Keep the next message.

        It is kept before anything else is waited for, so that a cancellation can't lose it.
        """
        message = None
        while message is None:
            # The client may go before its ping is answered. It may have sent more before that.
            with contextlib.suppress(ConnectionError):
                message = await self._socket.receive()
        self._kept.append(message)
        self._size += _weight(message)
        if message.type not in _DATA:
            self._has_ended = True
            if message.type is WSMsgType.CLOSE:
                await self._confirm(message.data)

    async def _confirm(self, code: int) -> None:
        """Answer a close by its own code, as aiohttp does not."""
        if not code:
            code = WSCloseCode.OK
        elif code == WSCloseCode.ABNORMAL_CLOSURE:
            code = WSCloseCode.PROTOCOL_ERROR  # that one is never sent, but aiohttp lets it pass
        with contextlib.suppress(ConnectionError):
            await self._socket.close(code=code, drain=False)


def _weight(message: WSMessage) -> int:
    data = message.data
    return OVERHEAD + (len(data) if isinstance(data, str | bytes) else 0)

"""Laws of responses by uvicorn to a client that has gone."""

import asyncio
import logging
import socket
import struct
import threading
from typing import Any

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("httpx")

from tests.service.uvicorns import (
    Receive,
    Send,
    begin,
    make,
    raw_client,
    request,
    running,
)
from tests.support import PATIENCE


async def test_a_response_to_a_client_that_has_reset_floods_no_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    is_reset, done = threading.Event(), asyncio.Event()

    async def stream(scope: Any, receive: Receive, send: Send) -> None:
        await begin(send)
        assert is_reset.wait(PATIENCE)  # and so the loop does not turn
        for _ in range(1000):
            await send({"type": "http.response.body", "body": b"news", "more_body": True})
        await send({"type": "http.response.body"})
        done.set()

    def ask_and_vanish(sock: socket.socket) -> None:
        sock.sendall(request())
        assert sock.recv(1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
        is_reset.set()

    async with running(make(stream)) as service:
        with raw_client(service) as sock:
            await asyncio.to_thread(ask_and_vanish, sock)
        await asyncio.wait_for(done.wait(), PATIENCE)
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []

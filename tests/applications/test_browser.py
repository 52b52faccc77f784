"""A page in a browser loads, fetches, posts, and uses a web socket."""

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("httpx")
pytest.importorskip("websockets")

from fastapi import FastAPI, Request, WebSocket
from fastapi.responses import HTMLResponse, StreamingResponse

from tests.applications.serving import Serve
from tests.support import PATIENCE

CHROMIUM = shutil.which("chromium")
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--no-proxy-server",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
)

PAGE = """<!doctype html>
<script>
const seen = {};

function talk() {
  return new Promise((resolve, reject) => {
    const socket = new WebSocket(`ws://${location.host}/echo`, ["chat", "echo"]);
    const answers = [];
    socket.binaryType = "arraybuffer";
    socket.onerror = () => reject(new Error("web socket"));
    socket.onopen = () => {
      seen.protocol = socket.protocol;
      socket.send("h\u00e9llo");
      socket.send(new Uint8Array([1, 2, 3]));
      socket.send("x".repeat(100000));
      socket.send("leave");
    };
    socket.onmessage = (event) => {
      const data = event.data;
      answers.push(typeof data === "string" ? (data.length > 10 ? data.length : data)
                                            : [...new Uint8Array(data)]);
    };
    socket.onclose = (event) => {
      seen.answers = answers;
      seen.close = [event.code, event.reason, event.wasClean];
      resolve();
    };
  });
}

function listen() {
  return new Promise((resolve) => {
    const source = new EventSource("/events");
    seen.events = [];
    source.onmessage = (event) => {
      seen.events.push(event.data);
      if (seen.events.length === 3) { source.close(); resolve(); }
    };
  });
}

async function run() {
  try {
    seen.json = await (await fetch("/json?a=1")).json();
    await talk();
    await listen();
  } catch (error) {
    seen.error = String(error);
  }
  await fetch("/outcome", {method: "POST", body: JSON.stringify(seen)});
}
run();
</script>
"""


@contextlib.asynccontextmanager
async def browser(url: str, folder: Path) -> AsyncIterator[None]:
    """Show a page in a browser during the block, and end all processes of the browser after it."""
    assert CHROMIUM is not None
    process = await asyncio.create_subprocess_exec(
        CHROMIUM,
        *OPTIONS,
        f"--user-data-dir={folder}",
        "--remote-debugging-port=0",  # else it ends when the page is loaded
        url,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
async def test_a_browser_uses_fetch_web_sockets_and_event_streams(
    serve: Serve, tmp_path: Path
) -> None:
    app = FastAPI()
    outcome: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    @app.get("/", response_class=HTMLResponse)
    async def page() -> str:
        return PAGE

    @app.get("/json")
    async def json(a: int) -> dict[str, int]:
        return {"a": a}

    @app.get("/events")
    async def events() -> StreamingResponse:
        async def numbers() -> AsyncIterator[str]:
            for number in range(3):
                yield f"data: {number}\n\n"
            await asyncio.sleep(PATIENCE)  # until the client leaves, or the service does

        return StreamingResponse(numbers(), media_type="text/event-stream")

    @app.websocket("/echo")
    async def echo(socket: WebSocket) -> None:
        await socket.accept(subprotocol="echo")
        while (message := await socket.receive())["type"] == "websocket.receive":
            if message.get("text") == "leave":
                await socket.close(4002, "as you wish")
                return
            await socket.send({**message, "type": "websocket.send"})

    @app.post("/outcome")
    async def take(request: Request) -> None:
        outcome.set_result(await request.json())

    server = await serve(app, shutdown_timeout=0.1)
    async with browser(f"{server.url}/", tmp_path):
        seen = await asyncio.wait_for(outcome, PATIENCE)
    assert seen == {
        "json": {"a": 1},
        "protocol": "echo",
        "answers": ["héllo", [1, 2, 3], 100000],
        "close": [4002, "as you wish", True],
        "events": ["0", "1", "2"],
    }

"""The status page in a browser."""

import asyncio
import json
import signal
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

websockets = pytest.importorskip("websockets.asyncio.client")

from tests.applications.test_browser import CHROMIUM, browser
from tests.support import PATIENCE, Program

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")

PROGRAM = """
import signal, time
from svcrun import Service, entrypoint
from svcrun.service import HealthService

class Database(Service):
    async def start(self): ...

class Shop(Service):
    depends_on = Database

    async def start(self):
        self.loop.add_signal_handler(signal.SIGUSR1, self.block)

    def block(self):
        global is_blocked
        is_blocked = True
        while is_blocked:
            time.sleep(0.01)

def release(*_):
    global is_blocked
    is_blocked = False

signal.signal(signal.SIGUSR2, release)
health = HealthService(port=0)
with entrypoint(Database(), Shop(), health) as loop:
    print(health.port, flush=True)
    loop.run_forever()
"""


class Page:
    """A page in a browser that is controlled from outside."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._number = 0

    async def call(self, method: str, **parameters: Any) -> Any:
        self._number += 1
        command = {"id": self._number, "method": method, "params": parameters}
        await self._connection.send(json.dumps(command))
        while (answer := json.loads(await self._connection.recv())).get("id") != self._number:
            pass
        return answer["result"]

    async def evaluate(self, expression: str) -> Any:
        answer = await self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        return answer["result"].get("value")

    async def until(self, expression: str) -> None:
        async with asyncio.timeout(PATIENCE):
            while not await self.evaluate(expression):  # noqa: ASYNC110 - the browser has no event
                await asyncio.sleep(0.05)


def fetch(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=PATIENCE) as answer:  # noqa: S310 - the address is ours
        return json.load(answer)


async def find_page(folder: Path, url: str) -> str:
    """Return the address at which the browser accepts commands for a page."""
    port_file = folder / "DevToolsActivePort"
    async with asyncio.timeout(PATIENCE):
        while not (port_file.exists() and "\n" in port_file.read_text()):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        port = int(port_file.read_text().splitlines()[0])
        while True:
            for target in await asyncio.to_thread(fetch, f"http://127.0.0.1:{port}/json/list"):
                if target["url"] == url:
                    address: str = target["webSocketDebuggerUrl"]
                    return address
            await asyncio.sleep(0.05)


async def test_the_page_follows_the_program_while_its_loop_is_blocked_and_after_its_end(
    run_program: Callable[..., Program], tmp_path: Path
) -> None:
    program = run_program(PROGRAM)
    line = await asyncio.to_thread(program.wait_for_line, r"^(\d+)$")
    url = f"http://127.0.0.1:{line[1]}/"
    text = "document.querySelector('main').innerText"
    async with (
        browser(url, tmp_path),
        websockets.connect(await find_page(tmp_path, url), proxy=None) as connection,
    ):
        page = Page(connection)
        await page.until(f"{text}.startsWith('ready')")
        assert await page.evaluate("document.querySelectorAll('tbody tr').length") == 3
        tree = (await page.call("Accessibility.getFullAXTree"))["nodes"]
        roles = {(one["role"]["value"], one.get("name", {}).get("value", "")) for one in tree}
        assert ("rowheader", "Shop") in roles
        assert ("table", "Services") in roles
        assert ("status", "") in roles
        assert any(role == "image" and "depends on" in name for role, name in roles)
        program.send_signal(signal.SIGUSR1)
        await page.until(f"{text}.includes('event loop blocked for')")
        assert "in block" in await page.evaluate(text)
        program.send_signal(signal.SIGUSR2)
        await page.until(f"{text}.startsWith('ready')")
        lost = "document.querySelector('#lost').hidden"
        assert await page.evaluate(lost) is True
        program.terminate()
        await page.until(f"!{lost}")

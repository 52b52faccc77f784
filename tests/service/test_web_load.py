"""The law of a stop under load: every accepted connection is answered (C33)."""

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("aiohttp")

from tests.service.webs import Truncated, read_answer, request
from tests.support import PATIENCE, Program, has

PROGRAM = """
import asyncio, sys
from aiohttp import web
from svcrun import entrypoint
from svcrun._web import graceful
from svcrun.service.aiohttp import AIOHTTPService
from tests.service.webs import application

# On a busy machine these clients may take longer to send their next requests than the usual 0.1 s.
graceful.LAST_CALL = 10

async def handle(request):
    await asyncio.sleep(0.002)
    return web.Response(text="x" * 1000)

service = AIOHTTPService("127.0.0.1", 0, app=lambda: application(handle))
with entrypoint(service, log_level="warning") as loop:
    print("port", service.port, flush=True)
    loop.run_forever()
"""

NEEDS_UVLOOP = pytest.mark.skipif(not has("uvloop"), reason="needs uvloop")

CLIENTS = 50
REQUESTS = 2000


class Load:
    """Clients that ask until they are refused.

    :param port: of the server.
    :param keep_alive: whether a connection is used again, until the server says that it closes it.
    :param enough: called when half of the requests have been answered.
    """

    def __init__(self, port: int, *, keep_alive: bool, enough: Callable[[], None]) -> None:
        self.port = port
        self.keep_alive = keep_alive
        self.enough = enough
        self.results: Counter[object] = Counter()

    async def run(self) -> None:
        async with asyncio.timeout(2 * PATIENCE), asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                group.create_task(self._ask_on())

    async def _ask_on(self) -> None:
        while True:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            except ConnectionRefusedError:
                self.results["refused"] += 1
                return
            try:
                await self._use(reader, writer)
            except (OSError, EOFError, Truncated) as error:
                self.results[repr(error)] += 1
            finally:
                writer.close()

    async def _use(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        headers = () if self.keep_alive else ("Connection: close",)
        closes = False
        while not closes:
            writer.write(request("/", *headers))
            answer = await read_answer(reader)
            self.results[answer.status, len(answer.body)] += 1
            if self.results[200, 1000] == REQUESTS // 2:
                self.enough()
            closes = answer.closes
            if self.results[200, 1000] >= 2 * REQUESTS:
                return  # the server has not noticed its end


@pytest.mark.parametrize("use_uvloop", [False, pytest.param(True, marks=NEEDS_UVLOOP)])
@pytest.mark.parametrize("keep_alive", [False, True])
async def test_a_stop_under_load_resets_and_truncates_nothing(
    run_program: Callable[..., Program], *, keep_alive: bool, use_uvloop: bool
) -> None:
    program = run_program(
        PROGRAM,
        options=(),
        env={
            "SVCRUN_USE_UVLOOP": str(int(use_uvloop)),
            "PYTHONPATH": str(Path(__file__).parents[2]),
        },
    )
    match = await asyncio.to_thread(program.wait_for_line, r"port (\d+)")
    load = Load(int(match[1]), keep_alive=keep_alive, enough=program.terminate)
    await load.run()
    outcome = await asyncio.to_thread(program.wait)
    answered = load.results.pop((200, 1000))
    assert load.results == {"refused": CLIENTS}
    assert answered >= REQUESTS // 2
    assert (outcome.returncode, outcome.stderr) == (0, "")

"""The law of a stop under load: every accepted connection is answered (C33, C38)."""

import asyncio
from collections import Counter
from collections.abc import Callable

import pytest

pytest.importorskip("aiohttp")

from tests.conftest import Certificates
from tests.entrypoint.programs import complaints
from tests.service.web_programs import KINDS, LOOPS, WebProgram
from tests.service.webs import Truncated, read_answer, request
from tests.support import PATIENCE, Program

# Clients that use their connection again, and those that use each connection once.
PERSISTENT, ONE_SHOT = 40, 10
REQUESTS = 1000


class Load:
    """Clients that ask without a pause until they are refused.

    :param enough: called when half of the requests have been answered.
    """

    def __init__(self, web: WebProgram, enough: Callable[[], None]) -> None:
        self.web = web
        self.enough = enough
        self.answered = 0
        self.results: Counter[object] = Counter()

    async def run(self) -> None:
        async with asyncio.timeout(2 * PATIENCE), asyncio.TaskGroup() as group:
            for number in range(PERSISTENT + ONE_SHOT):
                group.create_task(self._ask_on(keep_alive=number < PERSISTENT))

    async def _ask_on(self, *, keep_alive: bool) -> None:
        while True:
            try:
                reader, writer = await self.web.connect()
            except ConnectionRefusedError:
                self.results["refused"] += 1
                return
            try:
                await self._use(reader, writer, () if keep_alive else ("Connection: close",))
            except (OSError, EOFError, Truncated) as error:
                self.results[repr(error)] += 1
            finally:
                writer.close()

    async def _use(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, headers: tuple[str, ...]
    ) -> None:
        closes = False
        while not closes:
            writer.write(request("/", *headers))
            answer = await read_answer(reader)
            closes = answer.closes
            self.answered += 1
            if (answer.status, answer.body) != (200, b"/"):
                self.results[answer.status, answer.body] += 1
            if self.answered == REQUESTS // 2:
                self.enough()
            if self.answered >= 4 * REQUESTS:
                return  # the server has not noticed its end
        assert await reader.read() == b""


@pytest.mark.parametrize("is_tls", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize("use_uvloop", LOOPS)
@pytest.mark.parametrize("kind", KINDS)
async def test_a_stop_under_load_loses_no_request(
    run_program: Callable[..., Program],
    certificates: Certificates,
    kind: str,
    use_uvloop: str,
    *,
    is_tls: bool,
) -> None:
    web = WebProgram(run_program, kind, use_uvloop, certificates if is_tls else None)
    # On a busy machine these clients may take longer than the usual half second to send.
    await web.start(idle_grace=20, shutdown_timeout=30)
    load = Load(web, web.program.terminate)
    await load.run()
    outcome = await web.end()
    assert load.results == {"refused": PERSISTENT + ONE_SHOT}
    assert load.answered >= REQUESTS // 2
    assert (outcome.returncode, complaints(outcome)) == (0, "")

"""The whole life of N services: they and the loop are made, started, stopped, closed."""

import asyncio
import contextlib
import gc
import importlib
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.programs.protocol import answer, loop_factory, requests, run

Life = Callable[[int], None]


class Returns:
    """A service whose ``start()`` returns at once."""

    async def start(self) -> None:
        """Be ready at once."""

    async def stop(self, exception: BaseException | None = None) -> None:
        """Return at once."""


class RunsOn:
    """A service whose ``start()`` says that it is ready, and sleeps until it is cancelled."""

    start_event: asyncio.Event

    async def start(self) -> None:
        """Be ready and run on."""
        self.start_event.set()
        await asyncio.sleep(3600)

    async def stop(self, exception: BaseException | None = None) -> None:
        """Return at once."""


KINDS: dict[str, type[Any]] = {"returns": Returns, "runs on": RunsOn}


class PlainRunsOn(RunsOn):
    """The same with an event of its own."""

    def __init__(self) -> None:
        self.start_event = asyncio.Event()


def baseline(kind: str, loop: str) -> Life:
    """Gather the ``start()`` coroutines in a bare ``asyncio.Runner``, then those of ``stop()``.

    Where ``start()`` runs on, one turn of the loop lets all of them get ready, and after the stops
    they are cancelled and waited for.
    """
    make_loop = loop_factory(loop)

    async def live_returning(services: Sequence[Returns]) -> None:
        await asyncio.gather(*[service.start() for service in services])
        await asyncio.gather(*[service.stop() for service in services])

    async def live_running(services: Sequence[RunsOn]) -> None:
        running = asyncio.gather(*[service.start() for service in services])
        await asyncio.sleep(0)
        await asyncio.gather(*[service.stop() for service in services])
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running

    def returning(number: int) -> None:
        with asyncio.Runner(loop_factory=make_loop) as runner:
            runner.run(live_returning([Returns() for _ in range(number)]))

    def running(number: int) -> None:
        with asyncio.Runner(loop_factory=make_loop) as runner:
            runner.run(live_running([PlainRunsOn() for _ in range(number)]))

    return {"returns": returning, "runs on": running}[kind]


def svcrun(kind: str, loop: str) -> Life:
    """Enter and leave an entrypoint with its defaults: logging, signals, time limits included."""
    from svcrun import Service, entrypoint

    make_loop = loop_factory(loop)
    service: Any = type("Service", (KINDS[kind], Service), {})

    def life(number: int) -> None:
        with entrypoint(*[service() for _ in range(number)], loop_factory=make_loop):
            pass

    return life


def aiomisc(kind: str, loop: str) -> Life:
    """Enter and leave an entrypoint of aiomisc, with its defaults."""
    library = importlib.import_module("aiomisc")
    make_loop = loop_factory(loop)
    service: Any = type("Service", (KINDS[kind], library.Service), {})

    def life(number: int) -> None:
        with library.entrypoint(*[service() for _ in range(number)], loop_factory=make_loop):
            pass

    return life


def main(side: str, kind: str, loop: str) -> None:
    """Run the requested number of entrypoints, and answer with the mean cost of one."""
    life = {"baseline": baseline, "svcrun": svcrun, "aiomisc": aiomisc}[side](kind, loop)
    for number, lives in requests():
        gc.collect()
        began = time.process_time()
        for _ in range(lives):
            life(number)
        answer((time.process_time() - began) / lives)


if __name__ == "__main__":
    run(main)

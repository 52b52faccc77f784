"""The ways to run services, behind one call."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import svcrun
from svcrun import Service, entrypoint
from tests.support import PATIENCE, LoopFactory

Body = Callable[[entrypoint], Awaitable[Any]]


class Form:
    """One way to run services, on one kind of loop.

    A call runs `body` in the block, in a coroutine, and returns its result.
    """

    def __init__(self, name: str, loop_factory: LoopFactory) -> None:
        self.name = name
        self._loop_factory = loop_factory

    @property
    def owns_loop(self) -> bool:
        return self.name not in {"given", "async"}

    def __call__(self, *services: Service, body: Body | None = None, **options: Any) -> Any:
        options.setdefault("log_config", False)

        async def main() -> Any:
            return None if body is None else await body(svcrun.entrypoint.get_current())

        return getattr(self, f"_{self.name}")(services, main, options)

    def _sync(self, services: Any, main: Any, options: Any) -> Any:
        with entrypoint(*services, loop_factory=self._loop_factory, **options) as loop:
            return loop.run_until_complete(main())

    def _given(self, services: Any, main: Any, options: Any) -> Any:
        loop = self._loop_factory()
        try:
            with entrypoint(*services, loop=loop, **options):
                return loop.run_until_complete(main())
        finally:
            loop.close()

    def _async(self, services: Any, main: Any, options: Any) -> Any:
        async def program() -> Any:
            async with entrypoint(*services, **options):
                return await main()

        with asyncio.Runner(loop_factory=self._loop_factory) as runner:
            return runner.run(program())

    def _run(self, services: Any, main: Any, options: Any) -> Any:
        return svcrun.run(main(), *services, loop_factory=self._loop_factory, **options)

    def _thread(self, services: Any, main: Any, options: Any) -> Any:
        results: list[Any] = []
        errors: list[BaseException] = []

        def program() -> None:
            try:
                results.append(self._sync(services, main, options))
            except BaseException as error:  # noqa: BLE001 - it is raised below
                errors.append(error)

        thread = threading.Thread(target=program)
        thread.start()
        thread.join(PATIENCE)
        assert not thread.is_alive()
        if errors:
            raise errors[0]
        return results[0]


NAMES = ("sync", "given", "async", "run", "thread")

"""Report errors of tasks in the same way as log records of errors."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import sentry_sdk
from sentry_sdk.integrations.asyncio import AsyncioIntegration

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    Factory = Callable[..., asyncio.Future[Any]]

__all__ = ("TaskErrors", "name_of_task")


class TaskErrors(AsyncioIntegration):
    """Report each error that ends a task, and run each task in a scope of its own.

    Sentry's integration does so as well, but makes the reports in the event loop. A thousand tasks
    that fail at once would block the event loop for a second.

    :param report: called in the task with the error that ends it.
    """

    def __init__(self, report: Callable[[Exception], object]) -> None:
        super().__init__()
        self.report = report

    @staticmethod
    def setup_once() -> None:
        """Wrap the task factory of the running loop, unless it is wrapped already."""
        loop = asyncio.get_running_loop()
        found = loop.get_task_factory()
        if not isinstance(found, _WatchingFactory):
            loop.set_task_factory(_WatchingFactory(found))  # type: ignore[arg-type]  # takes more


def name_of_task() -> str:
    """Return the name of the current task."""
    task = asyncio.current_task()
    return "?" if task is None else task.get_name()


class _WatchingFactory:
    def __init__(self, found: Factory | None) -> None:
        self._make: Factory = asyncio.Task if found is None else _without_loop(found)

    def __call__(
        self, loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, Any], **options: Any
    ) -> asyncio.Future[Any]:
        watched = _watch(coro)
        for name in ("__name__", "__qualname__"):
            setattr(watched, name, getattr(coro, name, type(coro).__name__))
        task = self._make(watched, loop=loop, **options)
        # A task that is cancelled before its first step never awaits `coro`. Close it, or Python
        # warns that it was never awaited.
        task.add_done_callback(lambda _: coro.close())
        return task


def _without_loop(factory: Factory) -> Factory:
    """Return a function with the signature of :class:`asyncio.Task` that calls a task factory."""

    def make(coro: Coroutine[Any, Any, Any], *, loop: Any, **options: Any) -> asyncio.Future[Any]:
        return factory(loop, coro, **options)

    return make


async def _watch(coro: Coroutine[Any, Any, Any]) -> Any:
    with sentry_sdk.isolation_scope():
        try:
            return await coro
        except StopAsyncIteration:  # the end of an asynchronous iterator is not an error
            raise
        except Exception as error:
            integration = sentry_sdk.get_client().get_integration(AsyncioIntegration)
            if isinstance(integration, TaskErrors):
                integration.report(error)
            raise

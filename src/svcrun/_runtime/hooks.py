"""Call the hooks of an entrypoint within the deadline of the shutdown."""

from __future__ import annotations

import asyncio
import logging

from svcrun._util.drain import cancel_or_abandon
from svcrun._util.eager import is_forked_copy, start_eagerly
from svcrun._util.hints import TYPE_CHECKING, Any
from svcrun._util.tasks import format_stack

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from svcrun._runtime.block import Block
    from svcrun._runtime.loop_cleanup import Deadline
    from svcrun.service.base import Service

log = logging.getLogger("svcrun.entrypoint")

__all__ = ("Hooks",)


class Hooks:
    """Call hooks, and record those in progress.

    :param block: the block of the entrypoint; once its shutdown has begun, `deadline` applies.
    :param call: returns a coroutine that calls the receivers of the entrypoint's signal of that
        name, None if the signal has no receivers.
    """

    def __init__(
        self,
        block: Block,
        deadline: Deadline,
        call: Callable[[str, tuple[Service, ...]], Coroutine[Any, Any, None] | None],
    ) -> None:
        self._block = block
        self._deadline = deadline
        self._call = call
        self.tasks: set[asyncio.Task[Any] | None] = set()
        """The tasks that run hooks."""
        self.hung = False
        """Whether a hook timed out."""

    def cancel(self) -> None:
        """Cancel the hooks in progress."""
        for task in self.tasks:
            if task is not None:
                task.cancel()

    async def errors(self, name: str, services: tuple[Service, ...]) -> list[BaseException]:
        """Call the receivers of a hook and return the exceptions that they raised.

        In a shutdown, receivers that run past its deadline are cancelled.
        """
        call = self._call(name, services)
        if call is None:
            return []
        task = start_eagerly(self._errors_of(call, name), self._block.loop, name=name)
        if not task.done():
            await self._wait_for_hook(task, name)
        return task.result() if task.done() and not task.cancelled() else []

    async def _wait_for_hook(self, task: asyncio.Task[Any], name: str) -> None:
        try:
            if self._block.is_closing:
                await self._deadline.wait((task,))
            else:
                await asyncio.wait((task,))
        except asyncio.CancelledError:
            await cancel_or_abandon(task, log, f"hook {name}")
            raise
        if not task.done():
            self.hung = True
            log.error("hook %s timed out; cancelling it at\n%s", name, format_stack(task))
            await cancel_or_abandon(task, log, f"hook {name}")

    async def _errors_of(self, call: Coroutine[Any, Any, None], name: str) -> list[BaseException]:
        task = asyncio.current_task()
        self.tasks.add(task)
        try:
            await call
        except asyncio.CancelledError:
            log.warning("hook %s was cancelled", name)
            raise
        except BaseException as error:  # services are stopped after any exception
            if is_forked_copy(self._block.loop):
                raise
            log.exception("hook %s failed", name)
            return [error]
        finally:
            self.tasks.discard(task)
        return []

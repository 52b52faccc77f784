"""Call the hooks of an entrypoint, in a shutdown within its deadline.

The hooks are the receivers of the signals ``pre_start``, ``post_start``, ``pre_stop`` and
``post_stop``.
"""

from __future__ import annotations

import asyncio
import logging

from svcrun._runtime.shutdown_report import place_of
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
    """Call hooks, and record the tasks that run them.

    :param block: the block of the entrypoint; it shows whether the shutdown has begun.
    :param deadline: the deadline of the shutdown, which applies once the shutdown has begun.
    :param call: returns a coroutine that calls the receivers of the signal with that name, or None
        if the signal has no receivers.
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
        """Whether a hook has timed out."""

    def cancel(self) -> None:
        """Cancel the hooks in progress."""
        for task in self.tasks:
            if task is not None:
                task.cancel()

    def places(self) -> list[str]:
        """Describe where the hooks in progress wait."""
        return [f"hook {place_of(task, task.get_name())}" for task in self.tasks if task]

    async def errors(self, name: str, services: tuple[Service, ...]) -> list[BaseException]:
        """Call the receivers of the hook `name`, and return the exceptions that they raise.

        A hook that has not ended at the deadline of a shutdown is cancelled. If the caller is
        cancelled, the hook is cancelled as well.

        :param services: the services that the receivers are called with.
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
        except BaseException as error:  # the services are stopped after any exception of a hook
            # A hook that forked ends the child process, so the exception has to leave the child's
            # copy of the loop.
            if is_forked_copy(self._block.loop):
                raise
            log.exception("hook %s failed", name)
            return [error]
        finally:
            self.tasks.discard(task)
        return []

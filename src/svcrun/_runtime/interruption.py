"""Interrupt the start or the block of an entrypoint, and limit the time until it ends."""

from __future__ import annotations

import asyncio
import logging

from svcrun._runtime.shutdown_report import place_of
from svcrun._util.hints import TYPE_CHECKING, Any
from svcrun._util.tasks import format_stack

if TYPE_CHECKING:
    from collections.abc import Callable

    from svcrun._runtime.block import Block

log = logging.getLogger("svcrun.entrypoint")

__all__ = ("Interruption",)


class Interruption:
    """The code in the foreground of an entrypoint, which is interrupted once.

    This is first the start, then the block.

    :param block: the block of the entrypoint.
    :param on_ignored: called with a description of the code that ignored its cancellation, if the
        loop that runs the code can't be stopped.
    """

    def __init__(self, block: Block, on_ignored: Callable[[str], object]) -> None:
        self._block = block
        self._on_ignored = on_ignored
        self._has_ended = False
        self._is_done = False
        self._time_limit: asyncio.TimerHandle | None = None
        self.starting: asyncio.Task[Any] | None = None
        """The task of the start, while it runs."""
        self.in_block = False
        """Whether the code of the block runs."""
        self.is_wanted = False
        """Whether the start or the block has to be interrupted."""
        self.hung = False
        """Whether the code did not end until its time limit."""

    def begin_start(self) -> None:
        """Record that the current task is the start."""
        self.starting = asyncio.current_task()

    def end_start(self) -> None:
        """Record that the start has ended."""
        self.starting = None
        self.lift_limit()

    def begin_block(self) -> None:
        """Record that the code of the block runs."""
        self._block.watch()
        self.in_block = True

    def end_block(self) -> None:
        """Record that the code of the block has ended."""
        self.in_block = False
        self._has_ended = True
        self._block.unwatch()
        self.lift_limit()

    def skip(self) -> None:
        """Record that the entrypoint is left, so that there is no code to interrupt."""
        self._has_ended = True

    def interrupt(self, start_limit: float) -> None:
        """Interrupt the start or the block, once.

        :param start_limit: seconds that the start has to end.
        """
        self.is_wanted = True
        if self._is_done or self._has_ended:
            return
        if self.in_block:
            self._is_done = self._block.interrupt()
        elif self.starting is not None:
            self._is_done = self.starting.cancel()
            self.limit(start_limit)
        if not self._is_done:
            # Race: the start, or a wait of the block, has just ended. Retry in the next iteration.
            self._block.loop.call_soon(self.interrupt, start_limit)

    def cut_short(self, start_limit: float, block_limit: float) -> None:
        """Cancel the start or the block, even if it was interrupted before.

        :param start_limit: seconds that the start has to end.
        :param block_limit: seconds that the block has to end.
        """
        if self.starting is not None:
            self.starting.cancel()
            self.limit(start_limit)
        elif self.in_block:
            self._block.cancel()
            self.limit(block_limit)

    def limit(self, seconds: float) -> None:
        """Limit the time until the start or the block ends."""
        self.lift_limit()
        self._time_limit = self._block.loop.call_later(seconds, self._on_limit)

    def lift_limit(self) -> None:
        """Cancel the time limit."""
        if self._time_limit is not None:
            self._time_limit.cancel()

    def places(self) -> list[str]:
        """Describe where the code waits; return an empty list if there is none."""
        if self.starting is not None:
            return [place_of(self.starting, "the start")]
        return [place_of(self._block.task, "the block")] if self.in_block else []

    def _on_limit(self) -> None:
        self.hung = True
        name, task = ("block", self._block.task) if self.in_block else ("start", self.starting)
        if isinstance(task, asyncio.Task):
            stack = format_stack(task)
            log.error("the %s of the entrypoint ignored cancellation; it waits at\n%s", name, stack)
        if not self.in_block or not self._block.stop_loop():
            self._on_ignored(f"the {name} of the entrypoint")

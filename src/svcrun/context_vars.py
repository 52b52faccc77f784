"""The current entrypoint and event loop, under the names that aiomisc has for them.

:meth:`svcrun.Entrypoint.get_current` and :func:`asyncio.get_running_loop` are the usual ways.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from svcrun._runtime.lifetime import current_entrypoint
from svcrun._util.per_loop import running_loop
from svcrun._util.strict_context_var import StrictContextVar
from svcrun.entrypoint import Entrypoint

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

__all__ = ("CURRENT_ENTRYPOINT", "EVENT_LOOP", "StrictContextVar", "set_current_loop")


class _CurrentEntrypoint(StrictContextVar[Entrypoint]):
    def __init__(self) -> None:
        super().__init__(current_entrypoint.name, RuntimeError())
        self.context_var = current_entrypoint

    def get(self) -> Entrypoint:
        return Entrypoint.get_current()


class _CurrentLoop(StrictContextVar["AbstractEventLoop"]):
    def get(self) -> AbstractEventLoop:
        loop = self.context_var.get(None) or running_loop()
        if loop is not None:
            return loop
        try:
            return Entrypoint.get_current().loop
        except RuntimeError:
            return super().get()


CURRENT_ENTRYPOINT: StrictContextVar[Entrypoint] = _CurrentEntrypoint()
"""The entrypoint that runs here; its ``get()`` is :meth:`svcrun.Entrypoint.get_current`."""

EVENT_LOOP: StrictContextVar[AbstractEventLoop] = _CurrentLoop(
    "svcrun_event_loop", RuntimeError("no current event loop is set")
)
"""The loop that was set in this context, else the running one, else that of the entrypoint."""


def set_current_loop(loop: AbstractEventLoop) -> None:
    """Set the value of :data:`EVENT_LOOP` in this context."""
    EVENT_LOOP.set(loop)

"""Stop a service once, even if several callers call its ``stop()`` at the same time."""

from __future__ import annotations

import asyncio

from svcrun._util.hints import TYPE_CHECKING
from svcrun._util.tasks import current_work

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("SharedStop",)


class SharedStop:
    """Share one stop of a service: the first caller does the work, the others wait for its end.

    Deadlock: a caller may be a task that the stop waits for, such as a handler that stops its own
    server. Each would then wait for the other. So the code that waits for tasks leaves out
    :attr:`callers`.

    :param on_call: called after a caller was added, so that a wait in progress reads
        :attr:`callers` again.

    .. code-block:: python

        async def stop(self, exception=None):
            if await self._stop.in_progress():
                return
            with self._stop:
                ...  # wait for all tasks except self._stop.callers
    """

    __slots__ = ("_ended", "_on_call", "callers")

    def __init__(self, on_call: Callable[[], object] | None = None) -> None:
        self._on_call = on_call
        self._ended: asyncio.Future[None] | None = None
        self.callers: set[object] = set()
        """The tasks that wait for the end of the stop, and the work that they belong to.

        See :data:`svcrun._util.tasks.current_work`. The end of the stop empties the set.
        """

    @property
    def is_running(self) -> bool:
        """Whether a caller is doing the work."""
        return self._ended is not None

    async def in_progress(self) -> bool:
        """Add the caller to :attr:`callers`, and return whether another call does the work.

        If so, this returns after the other call has ended, whether it succeeded or raised.
        Otherwise the caller has to enter the context next.
        """
        self.callers.update({asyncio.current_task(), current_work.get()} - {None})
        if self._on_call is not None:
            self._on_call()
        # Race: the caller must not await between this check and __enter__(). Otherwise a second
        # caller would find no stop in progress and do the work again.
        if self._ended is None:
            return False
        await asyncio.wait((self._ended,))
        return True

    def __enter__(self) -> None:
        self._ended = asyncio.get_running_loop().create_future()

    def __exit__(self, *_: object) -> None:
        if self._ended is not None:
            self._ended.set_result(None)
        self._ended = None
        self.callers.clear()

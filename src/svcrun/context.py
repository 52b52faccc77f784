"""Values that the services of an entrypoint share and await.

.. code-block:: python

    import asyncio
    from svcrun import Service, entrypoint


    class Configuration(Service):
        async def start(self):
            self.context["interval"] = 5


    class Worker(Service):
        async def start(self):
            interval = await self.context["interval"]  # waits for Configuration
            self.start_event.set()
            while True:
                await asyncio.sleep(interval)


    with entrypoint(Worker(), Configuration()) as loop:
        ...
"""

from __future__ import annotations

import threading

from svcrun._util.current_service import current_service
from svcrun._util.hints import TYPE_CHECKING, Any
from svcrun._util.per_loop import PerLoop, running_loop
from svcrun.errors import ContextClosed

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Hashable


__all__ = ("Context", "awaited_keys", "get_context")

_contexts: PerLoop[Context] = PerLoop()


class Context:
    """A mapping whose values can be awaited before they are set.

    The entrypoint creates a context when it starts, and closes it at its end. ``service.context``
    and :func:`get_context` return it.

    :param loop: the event loop of the tasks that await values.

    >>> import asyncio
    >>> loop = asyncio.new_event_loop()
    >>> context = Context(loop)
    >>> context["answer"] = 42
    >>> "answer" in context, loop.run_until_complete(context["answer"])
    (True, 42)
    >>> context.close()
    >>> loop.close()
    """

    __slots__ = ("_is_closed", "_loop", "_thread_id", "_values", "_waiters")

    # Otherwise, iteration would await context[0], context[1] and so on without an end.
    __iter__ = None

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._thread_id = threading.get_ident()
        self._is_closed = False
        self._values: dict[Hashable, Any] = {}
        # By key, a future for each waiting task, because the cancellation of one task must not
        # affect the others; and by future, the service that awaits the key.
        self._waiters: dict[Hashable, dict[asyncio.Future[Any], object]] = {}
        _contexts.add(loop, self)

    def __getitem__(self, key: Hashable) -> asyncio.Future[Any]:
        """Return a future of the value, which is done if the key is set.

        :raises ContextClosed: a :class:`RuntimeError`, after the end of the entrypoint. The future
            raises it, too, if the entrypoint ends before the key is set.
        """
        self._check_open(key)
        future = self._loop.create_future()
        if key in self._values:
            future.set_result(self._values[key])
        else:
            self._waiters.setdefault(key, {})[future] = current_service.get()
            future.add_done_callback(lambda done: self._forget(key, done))
        return future

    def __setitem__(self, key: Hashable, value: Any) -> None:
        """Set or replace the value of a key, and wake the tasks that await it.

        This may be called in any thread.

        :raises ContextClosed: a :class:`RuntimeError`, after the end of the entrypoint.
        """
        self._check_open(key)
        # Race: tasks of the loop may read the key while another thread sets it. From here on, they
        # find the value. Tasks that found none are woken below, in the thread of the loop.
        self._values[key] = value
        if running_loop() is self._loop:
            self._wake(key)
            return
        try:
            self._loop.call_soon_threadsafe(self._wake, key)
        except RuntimeError:  # the loop is closed
            raise ContextClosed(key) from None

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def close(self) -> None:
        """Remove all values, and fail the waiting tasks; further calls do nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        _contexts.discard(self._loop, self)
        self._values.clear()
        waiters, self._waiters = self._waiters, {}
        if self._loop.is_closed():
            return  # a closed loop has no waiting tasks
        for key, futures in waiters.items():
            for future in futures:
                if not future.done():
                    future.set_exception(ContextClosed(key))
                    future.exception()  # so that asyncio does not log it if it is not awaited

    def _check_open(self, key: Hashable) -> None:
        if self._is_closed:
            raise ContextClosed(key)

    def _wake(self, key: Hashable) -> None:
        for future in self._waiters.pop(key, ()):
            if not future.done():
                future.set_result(self._values[key])

    def _forget(self, key: Hashable, future: asyncio.Future[Any]) -> None:
        """Remove the future of a cancelled task."""
        futures = self._waiters.get(key)
        if futures is not None:
            futures.pop(future, None)
            if not futures:
                del self._waiters[key]

    def __repr__(self) -> str:
        if self._is_closed:
            return "<Context closed>"
        return f"<Context keys={list(self._values)} awaited={list(self._waiters)}>"


def awaited_keys(loop: asyncio.AbstractEventLoop, service: object) -> list[Hashable]:
    """Return the keys that `service` awaits on `loop` and that are not set."""
    return [
        key
        for context in _contexts
        if context._loop is loop  # noqa: SLF001 - the same module
        for key, waiters in context._waiters.items()  # noqa: SLF001
        if any(asked is service for asked in waiters.values())
    ]


def get_context(loop: asyncio.AbstractEventLoop | None = None) -> Context:
    """Return the context of the entrypoint that runs on `loop`, or of the last one of several.

    :param loop: by default the running loop; without a running loop, that of the entrypoint that
        was entered in this thread.

    :raises RuntimeError: if no entrypoint runs there.
    """
    if loop is None:
        loop = running_loop()
    if loop is not None:
        context = _contexts.get(loop)
    else:
        thread_id = threading.get_ident()
        mine = [context for context in _contexts if context._thread_id == thread_id]  # noqa: SLF001
        context = mine[-1] if mine else None
    if context is None:
        if loop is None:
            where = "in this thread; pass its loop: get_context(loop)"
        else:
            where = f"on {loop!r}; use it inside `with entrypoint(...)`, its services and tasks"
        raise RuntimeError(f"no entrypoint runs {where}")
    return context

"""Call the ``health()`` of services in the event loop, and keep the results for other threads."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from svcrun._util.callables import optional_method
from svcrun._util.current_service import on_behalf_of
from svcrun._util.tasks import mark_retrieved
from svcrun.errors import show

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ("HealthChecks",)


class HealthChecks:
    """Check the running services one round after the other, all services of a round at once.

    Invariant: only the loop changes the results; other threads look one up. They are kept by the
    identity of the service, since the class of a service may define its own equality.

    :param running: returns the running services.
    :param interval: seconds between the starts of two rounds.
    :param timeout: seconds that a check may take.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        running: Callable[[], Iterable[Any]],
        interval: float,
        timeout: float,
    ) -> None:
        self._loop = loop
        self._running = running
        self._interval = interval
        self._timeout = timeout
        self._problems: dict[int, str | None] = {}
        # A check that ignores its cancellation is not repeated before it ends.
        self._tasks: dict[int, asyncio.Task[Any]] = {}
        self._has_check: dict[type, bool] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._is_open = False

    def begin(self) -> None:
        """Begin a round now; further rounds follow."""
        self._is_open = True
        if self._timer is not None:
            self._timer.cancel()
        self._begin_round()

    def close(self) -> None:
        """Cancel the checks in progress, and begin no more."""
        self._is_open = False
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks.values():
            task.cancel()

    def problem(self, service: Any) -> str | None:
        """Return why the last check of `service` failed; None if it is healthy.

        Any thread may call this. A service that was not checked since its start is checked at once.
        """
        try:
            return self._problems[id(service)]
        except KeyError:
            if not self._is_checked(service):
                return None
            if self._is_open:
                self._loop.call_soon_threadsafe(self._check, service)
            return "not checked yet"

    def _is_checked(self, service: Any) -> bool:
        kind = type(service)
        found = self._has_check.get(kind)
        if found is None:
            method = optional_method(service, "health", "health checks do not call it")
            found = self._has_check[kind] = method is not None
        return found

    def _begin_round(self) -> None:
        self._timer = self._loop.call_later(self._interval, self._begin_round)
        running = {id(one): one for one in self._running() if self._is_checked(one)}
        for stopped in self._problems.keys() - running:
            del self._problems[stopped]
        for service in running.values():
            self._check(service)

    def _check(self, service: Any) -> None:
        key = id(service)
        if self._is_open and key not in self._tasks:
            task = self._loop.create_task(self._run(service), name=f"check of {show(service)}")
            self._tasks[key] = task
            task.add_done_callback(lambda _: self._tasks.pop(key))
            task.add_done_callback(mark_retrieved)

    async def _run(self, service: Any) -> None:
        with on_behalf_of(service):
            check = self._loop.create_task(service.health(), name=f"health() of {show(service)}")
        try:
            await asyncio.wait((check,), timeout=self._timeout)
            self._problems[id(service)] = self._result(check)
        finally:
            check.cancel()
            # Without a limit: this task only marks that the check has not ended.
            await asyncio.wait((check,))

    def _result(self, check: asyncio.Task[Any]) -> str | None:
        if not check.done():
            return f"health() took longer than {self._timeout:g} s"
        if check.cancelled():
            return "health() was cancelled"
        error = check.exception()
        if error is None:
            return None
        return f"{type(error).__name__}: {error}"

"""Bring a crashed service back, together with those that depend on it."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING

from svcrun.eager import start_eagerly
from svcrun.order import with_dependants
from svcrun.service.base import Service, dependencies

if TYPE_CHECKING:
    from svcrun.restart import Restart
    from svcrun.supervisor import Supervisor
    from svcrun.unit import Unit

log = logging.getLogger(__name__)

__all__ = ("Recovery",)


class Recovery:
    """Stop a crashed service and those that depend on it, wait, and start them again.

    That is repeated until it succeeds, or the policy gives up.

    :param supervisor: does the stopping and the starting.
    :param unit: what crashed.
    :param policy: says how long to wait, and when to give up.
    """

    def __init__(
        self, supervisor: Supervisor, unit: Unit, policy: Restart, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._supervisor = supervisor
        self._crashed = unit.service
        self._policy = policy
        self._loop = loop
        self._services = [u.service for u in with_dependants([unit]) if u.in_sweep is None]
        self._task: asyncio.Task[None] | None = None

    def begin(self, unit: Unit, error: BaseException) -> None:
        """Recover in a task of our own."""
        delay = self._next_delay()
        if delay is None:
            self._supervisor.fatal(self, error)
        else:
            self._task = start_eagerly(
                self._run(unit, error, delay), self._loop, name=f"restart of {unit.service!r}"
            )

    async def cancel(self) -> None:
        """Give up."""
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()
            await asyncio.wait((self._task,))

    def leave_out(self, service: Service) -> None:
        """Forget `service`, which is somebody else's now, and what can't run without it."""
        if service in self._services:
            self._services = [
                s for s in self._services if s is not service and not _depends(s, service)
            ]

    async def _run(self, unit: Unit, error: BaseException, delay: float | None) -> None:
        await self._supervisor.stop_units([unit], error)
        while delay is not None:
            log.warning("%r will be started again in %.1f s", self._crashed, delay)
            await asyncio.sleep(delay)
            self._hand_over()
            try:
                await self._supervisor.start_at_rest(self._services)
            except Exception as failure:
                log.exception("%r could not be started again", self._crashed)
                error = failure
                delay = self._next_delay()
            else:
                self._supervisor.recovered(self)
                return
        self._supervisor.fatal(self, error)

    def _next_delay(self) -> float | None:
        service = self._crashed
        if service._crashes is None:
            service._crashes = deque()
        delay = self._policy.next_delay(service._crashes, self._loop.time())
        if delay is None:
            log.error(
                "%r crashed more than %d times within %g s",
                service,
                self._policy.limit,
                self._policy.window,
            )
        return delay

    def _hand_over(self) -> None:
        """Leave what depends on a service that is still down to who brings that one back."""
        for other in self._supervisor.recoveries - {self}:
            ours = [s for s in self._services if any(_depends(s, down) for down in other._services)]
            self._services = [s for s in self._services if s not in ours]
            other._services.extend(ours)


def _depends(service: Service, other: Service) -> bool:
    return any(
        isinstance(other, dependency) if isinstance(dependency, type) else other is dependency
        for dependency in dependencies(service)
    )

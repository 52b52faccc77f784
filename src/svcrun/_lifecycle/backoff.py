"""Back-off between the attempts to start a service, and the log records of its failures."""

from __future__ import annotations

import logging
from collections import deque

from svcrun._util.current_service import on_behalf_of
from svcrun._util.hints import TYPE_CHECKING
from svcrun._util.raising import one_line
from svcrun.errors import show

if TYPE_CHECKING:
    from svcrun.restart import Restart
    from svcrun.service.base import Service

log = logging.getLogger("svcrun.lifecycle")

__all__ = ("Backoff",)


class Backoff:
    """Count the failures of a service under a policy, and log them.

    The traceback of an error is logged once. An error of the same type, raised at the same line, is
    logged in one line, as long as the previous failure is within the window of the policy.
    """

    __slots__ = ("_known", "_times")

    def __init__(self) -> None:
        self._times: deque[float] = deque()
        self._known: set[object] = set()

    def next_delay(self, policy: Restart, now: float) -> float | None:
        """Count a failure and return the seconds until the next attempt, None at the limit."""
        delay = policy.next_delay(self._times, now)
        if len(self._times) == 1:  # the previous failures are outside of the window
            self._known.clear()
        return delay

    def is_new(self, service: Service, error: BaseException) -> bool:
        """Return whether `error` is new for `service`, and record it."""
        traceback = error.__traceback__
        while traceback is not None and traceback.tb_next is not None:
            traceback = traceback.tb_next
        place = None if traceback is None else (traceback.tb_frame.f_code, traceback.tb_lineno)
        key = (id(service), type(error), place)
        if key in self._known:
            return False
        self._known.add(key)
        return True

    def report_start(self, service: Service, error: BaseException, delay: float | None) -> None:
        """Log that ``start()`` of `service` failed, and the delay until the next attempt."""
        reason = error if self.is_new(service, error) else None
        with on_behalf_of(service):
            if delay is None:
                log.error("%s failed to start: %s", show(service), one_line(error), exc_info=reason)
            else:
                log.warning(
                    "%s failed to start: %s; restarting in %.1f s",
                    show(service),
                    one_line(error),
                    delay,
                    exc_info=reason,
                )

    @staticmethod
    def report_end(service: Service, policy: Restart) -> None:
        """Log that `service` failed more often than the policy allows."""
        with on_behalf_of(service):
            log.error(
                "%s failed more than %d times within %g s",
                show(service),
                policy.limit,
                policy.window,
            )

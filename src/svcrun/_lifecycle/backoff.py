"""Back-off between the attempts to start a service, and the log records of its failures."""

from __future__ import annotations

import logging
from collections import deque

from svcrun._util.current_service import on_behalf_of
from svcrun._util.hints import TYPE_CHECKING
from svcrun._util.raising import one_line
from svcrun.errors import show
from svcrun.restart import Restart
from svcrun.service._internals import part_of

if TYPE_CHECKING:
    from svcrun.service.base import Service

log = logging.getLogger("svcrun.lifecycle")

__all__ = ("Backoff", "backoff_of", "report_crash", "retry_policy")


def backoff_of(service: Service) -> Backoff:
    """Return the back-off of `service` after crashes, which all its restarts share."""
    return part_of(service, _new_backoff)


def _new_backoff(_: Service) -> Backoff:
    return Backoff()


def retry_policy(service: Service, default: Restart | None) -> Restart | None:
    """Return the policy for retries of a failed first start of `service`."""
    try:
        policy: object = service.start_retry
    except Exception:  # noqa: BLE001 - a property of a subclass may raise anything
        return None
    if policy is None:
        return default
    # A subclass may use the name for something else; it is not retried then.
    return policy if isinstance(policy, Restart) else None


def report_crash(service: Service, error: BaseException, *, is_new: bool = True) -> None:
    """Log that `service` crashed, with a traceback if the error is new."""
    with on_behalf_of(service):
        if is_new:
            log.error("%s crashed", show(service), exc_info=error)
        else:
            log.error("%s crashed again: %s", show(service), one_line(error))


class Backoff:
    """Count the failures of a service under a policy, and log them.

    An error of a known type and line is logged without its traceback, as long as the previous
    failure is within the window of the policy.
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
        """Return whether no error of this type and line is known of `service`, and record it."""
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

"""Decide which exception an entrypoint is left with."""

from __future__ import annotations

import asyncio
import logging

from svcrun._runtime.exit_watchdog import EXIT_HUNG
from svcrun._util.hints import TYPE_CHECKING
from svcrun._util.raising import raise_together, raise_unchanged
from svcrun.errors import ShuttingDown, StopTimeout

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger("svcrun.entrypoint")

__all__ = ("Outcome",)


class Outcome:
    """The errors of one life of an entrypoint.

    :param service_errors: the list of errors that the supervisor fills.
    :param is_interruption: returns whether an exception, or None, that ended the block results from
        an interruption by the entrypoint alone.
    """

    def __init__(
        self,
        service_errors: list[BaseException],
        is_interruption: Callable[[BaseException | None], bool],
    ) -> None:
        self._service_errors = service_errors
        self._is_interruption = is_interruption
        self._errors: list[BaseException] = []
        self.crashes: list[BaseException] = []
        """The crashes of services that began the shutdown, or came during it."""

    def add(self, error: BaseException) -> None:
        """Record an error of a hook, or one that interrupted the shutdown; the shutdown goes on."""
        if not any(known is error for known in (*self._errors, *self._service_errors)):
            self._errors.append(error)

    def exception_for_services(self, error: BaseException | None) -> BaseException | None:
        """Return the exception to call each ``stop()`` with.

        :param error: the exception that ended the block, or None.
        """
        if not self._is_interruption(error):
            return error
        return self.crashes[0] if self.crashes else None

    def start_error(
        self,
        error: BaseException,
        by_signal: Callable[[], BaseException],
        *,
        was_interrupted: bool,
    ) -> BaseException:
        """Return the exception to raise for a start that ended with `error`, after the roll-back.

        :param by_signal: returns the exception for a start that a signal interrupted.
        :param was_interrupted: whether a signal, a crash or a call interrupted the start.
        """
        if not was_interrupted or not isinstance(error, asyncio.CancelledError | ShuttingDown):
            return error
        if len(self.crashes) > 1:
            return BaseExceptionGroup("several services crashed", tuple(self.crashes))
        return self.crashes[0] if self.crashes else by_signal()

    def conclude(self, error: BaseException | None, *, hung: bool) -> bool:
        """Return whether `error`, which ended the block, is to be suppressed.

        :param hung: whether the shutdown timed out.

        :raises SystemExit: with code 70, if anything timed out.
        :raises BaseException: the errors of services and hooks, unless the block failed.
        """
        errors = [*self._errors, *self._service_errors]
        for known in (self.crashes, self._errors, self._service_errors):
            known.clear()  # a traceback may refer to the runtime: a reference cycle
        ours = self._is_interruption(error)
        late = next((error for error in errors if ours and isinstance(error, StopTimeout)), None)
        if hung or late is not None:
            raise_unchanged(self.exit_hung(late if ours else error))
        if ours:
            raise_together("services failed", errors)
        return ours and error is not None

    @staticmethod
    def exit_hung(cause: BaseException | None) -> SystemExit:
        """Return the exception that ends the process with exit code 70, because of `cause`."""
        if cause is not None and not isinstance(cause, StopTimeout):
            log.error("shutdown timed out; suppressing this exception", exc_info=cause)
        error = SystemExit(EXIT_HUNG)
        error.__cause__ = cause
        return error

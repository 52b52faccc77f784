"""A service that sends what goes wrong to Sentry, by sentry-sdk."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

try:
    import sentry_sdk  # noqa: F401 - it is for _sentry, but this is where to tell that it is absent
except ImportError as error:
    msg = "svcrun.service.sentry needs sentry-sdk: pip install 'svcrun[sentry]'"
    raise ImportError(msg) from error

from svcrun._reporting.report_queue import Report, make_unhandled, unreported
from svcrun._reporting.sentry.client import LONGEST_FLUSH, close, flush, installed, patience
from svcrun._reporting.sentry.events import Scopes, capture
from svcrun._reporting.sentry.options import check_dsn, check_options, make_options, show_dsn
from svcrun._reporting.sentry.tasks import name_of_task
from svcrun._reporting.sentry.transport import Transport
from svcrun.errors import AlreadyRunning
from svcrun.service._internals import overridable, part_of
from svcrun.service._sender import Sender

if TYPE_CHECKING:
    from sentry_sdk.client import BaseClient


__all__ = ("SentrySender",)

log = logging.getLogger(__name__)


class SentrySender(Sender):
    """Send what is logged, errors of tasks, and what ended the program, to Sentry.

    While the service runs, its client is the one of ``sentry_sdk``: a program may capture errors
    and set tags as it does anywhere. Each event is tagged with the ``service`` that it comes from,
    and an exception is reported once, however often it is logged, or captured.

    A log call only takes note, and so does a task that fails; a thread makes the events, another
    one sends them. What does not fit into the queue is dropped and counted.

    The sender stops after the other services, so that it can report how they did it.

    :param sentry_dsn: the address of the project, a string or a URL. If it is empty, that in the
        environment's ``SENTRY_DSN``.
    :param min_level: the lowest level that is reported, a number or a name; ``WARNING`` by
        default.
    :param client_options: keyword arguments of ``sentry_sdk.init()``. Integrations other than
        those for logging and asyncio are off by default.
    :param filters: :class:`logging.Filter` instances, or functions of a record, that tell what is
        reported.
    :param queue_size: how many records may wait to be made events; 500 by default. How many events
        may wait to be sent is an option of sentry, ``transport_queue_size``; 100 by default.
    :param flush_timeout: seconds for which the stop, while it sends what waits, goes without an
        answer of the server; 1.5 by default. Then the rest is dropped, and its number logged.

    ``client`` is sentry's client while the service runs. :attr:`sent` and :attr:`dropped` count
    events since the start.

    :raises ValueError, TypeError: naming a parameter that has a wrong value; keys are not shown.
    :raises FileNotFoundError: if a file of TLS is absent, naming the option and the path.

    >>> from svcrun.service.sentry import SentrySender
    >>> SentrySender(sentry_dsn="https://583ca3b5@sentry.example.com/42", min_level="error")
    <SentrySender NEW>
    """

    def __init__(self, **kwargs: Any) -> None:  # type checkers would make another one
        super().__init__(**kwargs)

    @property
    def __own(self) -> _Sending:
        return part_of(self, _Sending)

    @overridable
    def client(self) -> BaseClient | None:
        """The client of sentry_sdk."""
        return self.__own.client

    @overridable
    def sent(self) -> int:
        """How many events the server has taken."""
        return 0 if self.__own.transport is None else self.__own.transport.sent

    @property
    def _svcrun_undelivered(self) -> int:
        return 0 if self.__own.transport is None else self.__own.transport.dropped

    def _svcrun_parse_dsn(self, value: object) -> str:
        return check_dsn(self, value)

    def _svcrun_check_options(self, options: Any) -> dict[str, Any]:
        return check_options(self, options)

    async def start(self) -> None:
        """Begin to report.

        :raises SentryInUse: if another sender runs in this process, which has one client.
        """
        if self.__own.client is not None:
            raise AlreadyRunning(self)
        dsn: str = self._svcrun_find_dsn()
        handler = self._svcrun_make_handler(
            self.__report,
            stacks=bool(self.client_options.get("attach_stacktrace")),
            take_note=Scopes.fork,
        )
        options = make_options(dsn, self.client_options, self.__report_task)
        with ExitStack() as undo:
            client = undo.enter_context(installed(self, options))
            transport = client.transport
            self.__own.transport = transport if isinstance(transport, Transport) else None
            self._svcrun_handler = handler
            handler.attach()
            self.__own.undo = undo.pop_all()
        self.__own.client = client
        with unreported():
            log.info("reporting to %s", show_dsn(dsn))

    async def stop(self, exception: Any = None) -> None:
        """Report `exception`, unless it was, send what waits, and end."""
        client, handler = self.__own.client, self._svcrun_handler
        if client is None or handler is None:
            await super().stop(exception)
            return
        self.__own.client = None
        handler.report_unhandled(exception)
        try:
            async with patience(client, self.flush_timeout):
                await handler.finish(LONGEST_FLUSH)
                await flush(client)
        finally:
            self.__own.undo.close()
            try:
                await close(client, self.flush_timeout)
            finally:
                await super().stop(exception)

    def __report_task(self, error: Exception) -> None:
        """Take note of what a task ends with; who waits for it may well know what to do."""
        handler = self._svcrun_handler
        if handler is None or handler.level > logging.ERROR or handler.has_reported(error):
            return
        record = make_unhandled(error)
        record.name, record.levelno, record.levelname = "asyncio.unhandled", logging.ERROR, "ERROR"
        record.msg, record.args = "Unhandled exception in task %s", (name_of_task(),)
        handler.handle(record)

    def __report(self, report: Report) -> bool:
        if self.__own.transport is not None and not self.__own.transport.wait_for_room():
            return False
        capture(report)
        return True


class _Sending:
    """The client and the transport of a sender, and the changes that its stop undoes."""

    undo: ExitStack

    def __init__(self, _: SentrySender) -> None:
        self.client: BaseClient | None = None
        self.transport: Transport | None = None

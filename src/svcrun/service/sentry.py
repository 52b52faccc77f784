"""A service that reports log records and errors to Sentry with sentry-sdk."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, ClassVar

try:
    import sentry_sdk  # noqa: F401 - for the error below, which names the extra
except ImportError as error:
    msg = "svcrun.service.sentry needs sentry-sdk: pip install 'svcrun[sentry]'"
    raise ImportError(msg) from error

from svcrun._reporting.report_queue import Report, make_unhandled, unreported
from svcrun._reporting.sentry.client import MAX_FLUSH, close, flush, flush_timeout, installed
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


class SentrySender(Sender, base=True):
    """Report log records, errors of tasks, and the error that ended the program to Sentry.

    While the service runs, its client is that of ``sentry_sdk``: the program may capture errors and
    set tags as usual. Each event has the tag ``service``, the name of the service that it comes
    from. An exception is reported once, however often it is logged or captured.

    A log call or a failing task only queues a record. One thread makes the events, another one
    sends them. Records beyond the size of the queue are dropped and counted.

    The sender stops after the other services, to report how they ended.

    :param sentry_dsn: the address of the project, a string or a URL; by default that in the
        environment variable ``SENTRY_DSN``.
    :param min_level: the lowest level that is reported, a number or a name; ``WARNING`` by
        default.
    :param client_options: keyword arguments of ``sentry_sdk.init()``. Only the integrations for
        logging and asyncio are enabled by default.
    :param filters: :class:`logging.Filter` instances, or functions of a record that return whether
        to report it.
    :param queue_size: the maximum number of records that wait to be made events; 500 by default.
        The maximum of events that wait to be sent is an option of sentry, ``transport_queue_size``;
        100 by default.
    :param flush_timeout: seconds that the stop waits for a response of the server while it sends
        the waiting events; 1.5 by default. The rest is dropped and counted in the log.

    ``client`` is sentry's client while the service runs. :attr:`sent` and :attr:`dropped` count
    events since the start.

    :raises ValueError, TypeError: naming the parameter that has a wrong value, without any keys.
    :raises FileNotFoundError: naming the option of a TLS file that does not exist.

    >>> from svcrun.service.sentry import SentrySender
    >>> SentrySender(sentry_dsn="https://583ca3b5@sentry.example.com/42", min_level="error")
    <SentrySender NEW>
    """

    _svcrun_takes_options: ClassVar[str] = "sentry_sdk.init()"
    _svcrun_parse_dsn = check_dsn
    _svcrun_check_options = check_options

    @overridable
    def client(self) -> BaseClient | None:
        """The client of sentry_sdk, None unless the service runs."""
        client: BaseClient | None = self._svcrun_reporting.client
        return client

    async def start(self) -> None:
        """Start to report.

        :raises RuntimeError: if another sender runs in this process, which has one client.
        """
        reporting = self._svcrun_reporting
        if reporting.client is not None:
            raise AlreadyRunning(self)
        dsn: str = self._svcrun_find_dsn()
        handler = self._svcrun_make_handler(
            self.__report,
            stacks=bool(self.client_options.get("attach_stacktrace")),
            snapshot=Scopes.fork,
        )
        options = make_options(dsn, self.client_options, self.__report_task)
        with ExitStack() as undo:
            client = undo.enter_context(installed(self, options))
            transport = client.transport
            reporting.delivery = transport if isinstance(transport, Transport) else None
            reporting.handler = handler
            handler.attach()
            part_of(self, _Changes).undo = undo.pop_all()
        reporting.client = client
        with unreported():
            log.info("reporting to %s", show_dsn(dsn))

    async def stop(self, exception: Any = None) -> None:
        """Report `exception` unless it was reported before, and send the waiting events."""
        reporting = self._svcrun_reporting
        client, handler = reporting.client, reporting.handler
        if client is None or handler is None:
            await super().stop(exception)
            return
        reporting.client = None
        handler.report_unhandled(exception)
        try:
            async with flush_timeout(client, self.flush_timeout):
                await handler.finish(MAX_FLUSH)
                await flush(client)
        finally:
            part_of(self, _Changes).undo.close()
            try:
                await close(client, self.flush_timeout)
            finally:
                await super().stop(exception)

    def __report_task(self, error: Exception) -> None:
        """Report the error of a task as an error, since the code that awaits it may handle it."""
        handler = self._svcrun_reporting.handler
        if handler is None or handler.level > logging.ERROR or handler.has_reported(error):
            return
        record = make_unhandled(error)
        record.name, record.levelno, record.levelname = "asyncio.unhandled", logging.ERROR, "ERROR"
        record.msg, record.args = "Unhandled exception in task %s", (name_of_task(),)
        handler.handle(record)

    def __report(self, report: Report) -> bool:
        delivery = self._svcrun_reporting.delivery
        if isinstance(delivery, Transport) and not delivery.wait_for_room():
            return False
        capture(report)
        return True


class _Changes:
    """The changes to sentry_sdk and the event loop, which the stop reverts."""

    undo: ExitStack

    def __init__(self, _: SentrySender) -> None:
        pass

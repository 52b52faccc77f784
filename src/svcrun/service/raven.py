"""A service that reports log records to Sentry with raven."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, ClassVar

try:
    import aiohttp  # noqa: F401 - for the error below, which names the extra
    import raven.base  # noqa: F401 - the same
except ImportError as error:
    msg = "svcrun.service.raven needs raven: pip install 'svcrun[raven]'"
    raise ImportError(msg) from error

from svcrun._reporting.raven.client import Client, check_options
from svcrun._reporting.raven.delivery_queue import DeliveryQueue
from svcrun._reporting.raven.dsn import parse_dsn
from svcrun._reporting.raven.transports import (
    AioHttpTransport as AioHttpTransport,
    AioHttpTransportBase as AioHttpTransportBase,
    DummyTransport as DummyTransport,
    QueuedAioHttpTransport as QueuedAioHttpTransport,
    QueuedKeepaliveAioHttpTransport as QueuedKeepaliveAioHttpTransport,
)
from svcrun._reporting.report_queue import ReportHandler, unreported
from svcrun.errors import AlreadyRunning, ParameterError
from svcrun.service._internals import overridable
from svcrun.service._parameters import REQUIRED, parameter
from svcrun.service._sender import Sender

if TYPE_CHECKING:
    from svcrun._reporting.raven.dsn import DSN

__all__ = ("RavenSender",)

log = logging.getLogger(__name__)


class RavenSender(Sender, base=True):
    """Report log records, and the error that ended the program, to Sentry.

    A log call only queues a record. A thread makes the event, and the event loop sends it. Records
    beyond the size of the queue are dropped and counted. While the server is unreachable, events
    wait and are retried for five minutes at most.

    The sender stops after the other services, to report how they ended.

    :param sentry_dsn: the address of the project, a string or a URL; if empty, that in the
        environment variable ``SENTRY_DSN``. It may end with ``?timeout=`` and seconds,
        ``?verify_ssl=0``, and ``?ca_certs=`` and the path of a file of authorities.
    :param min_level: the lowest level that is reported, a number or a name; ``WARNING`` by
        default.
    :param client_options: keyword arguments of ``raven.Client``. Its hooks into the interpreter,
        logging and libraries are disabled by default.
    :param filters: :class:`logging.Filter` instances, or functions of a record that return whether
        to report it.
    :param queue_size: the maximum number of records that wait to be made events, and of events
        that wait to be sent; 500 by default.
    :param flush_timeout: seconds for which the stop sends the waiting events; 1.5 by default. The
        rest is dropped and counted in the log.

    From the start on, ``client`` is the client of raven, and :attr:`sent` and :attr:`dropped` count
    events.

    :raises ValueError, TypeError: naming the parameter that has a wrong value, without any keys.

    >>> from svcrun.service.raven import RavenSender
    >>> RavenSender(sentry_dsn="https://583ca3b5@sentry.example.com/42", min_level="error")
    <RavenSender NEW>
    """

    _svcrun_takes_options: ClassVar[str] = "raven.Client"
    _svcrun_parse_dsn = parse_dsn
    _svcrun_check_options = check_options

    sentry_dsn: Any = parameter(default=REQUIRED)

    @overridable
    def client(self) -> Client | None:
        """The ``raven.Client``, None before the start."""
        client: Client | None = self._svcrun_reporting.client
        return client

    async def start(self) -> None:
        """Start to report."""
        reporting = self._svcrun_reporting
        if reporting.handler is not None and reporting.handler.is_attached:
            raise AlreadyRunning(self)
        dsn: DSN = self._svcrun_find_dsn()
        queue = DeliveryQueue(dsn, self.queue_size)
        client = self.__make_client(dsn, queue)
        handler = self._svcrun_make_handler(
            client.send_report, stacks=client.auto_log_stacks, snapshot=client.snapshot
        )
        reporting.delivery, reporting.client, reporting.handler = queue, client, handler
        try:
            handler.attach()  # at once, for records of services that start at the same time
            await queue.open()
        except BaseException:
            await self.__close(handler, 0)
            raise
        with unreported():
            log.info("reporting to %s", dsn)

    def __make_client(self, dsn: DSN, queue: DeliveryQueue) -> Client:
        try:
            return Client(dsn, queue, **self.client_options)
        except Exception as error:
            accepted = f"options that raven.Client accepts ({error!r})"
            names = sorted(self.client_options)
            raise ParameterError(self, "client_options", names, accepted) from error

    async def stop(self, exception: Any = None) -> None:
        """Report `exception` unless it was reported before, and send the waiting events."""
        handler = self._svcrun_reporting.handler
        if handler is not None and handler.is_attached:
            handler.report_unhandled(exception)
            await self.__close(handler, self.flush_timeout)
        await super().stop(exception)

    async def __close(self, handler: ReportHandler, timeout: float) -> None:
        """Make events of the waiting records, send them, and close the client."""
        reporting = self._svcrun_reporting
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        try:
            await handler.finish(timeout)
        finally:
            try:
                await reporting.delivery.close(max(0.0, deadline - loop.time()))
            finally:
                reporting.client.close()

"""A service that sends what goes wrong to Sentry, by raven."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, ClassVar

try:
    import aiohttp  # noqa: F401 - it is for _raven, but this is where to tell that it is absent
    import raven.base  # noqa: F401 - the same
except ImportError as error:
    msg = "svcrun.service.raven needs raven: pip install 'svcrun[raven]'"
    raise ImportError(msg) from error

from svcrun._reporting.raven.client import Client, check_options
from svcrun._reporting.raven.courier import Courier
from svcrun._reporting.raven.dsn import parse_dsn
from svcrun._reporting.raven.transports import (
    AioHttpTransport as AioHttpTransport,
    AioHttpTransportBase as AioHttpTransportBase,
    DummyTransport as DummyTransport,
    QueuedAioHttpTransport as QueuedAioHttpTransport,
    QueuedKeepaliveAioHttpTransport as QueuedKeepaliveAioHttpTransport,
)
from svcrun._reporting.report_queue import unreported
from svcrun.errors import AlreadyRunning, ParameterError
from svcrun.service._internals import overridable, part_of
from svcrun.service._sender import Sender

if TYPE_CHECKING:
    from collections.abc import Collection

    from svcrun._reporting.raven.dsn import DSN

__all__ = ("RavenSender",)

log = logging.getLogger(__name__)


class RavenSender(Sender):
    """Send what is logged, and what ended the program, to Sentry.

    A log call only takes note; a thread makes the event, and the event loop sends it. What does
    not fit into the queue is dropped and counted. While the server can't be reached, events wait
    and are tried again, for five minutes at most.

    The sender stops after the other services, so that it can report how they did it.

    :param sentry_dsn: the address of the project, a string or a URL. If it is empty, that in the
        environment's ``SENTRY_DSN``. ``?timeout=`` seconds, ``?verify_ssl=0`` and ``?ca_certs=``,
        a file of authorities, may be added to it.
    :param min_level: the lowest level that is reported, a number or a name; ``WARNING`` by
        default.
    :param client_options: keyword arguments of ``raven.Client``. Its hooks into the interpreter,
        logging and libraries are off by default.
    :param filters: :class:`logging.Filter` instances, or functions of a record, that tell what is
        reported.
    :param queue_size: how many records may wait to be made events, and how many events may wait to
        be sent; 500 by default.
    :param flush_timeout: seconds in which the stop sends what waits; 1.5 by default. The rest is
        dropped, and its number logged.

    From the start on, ``client`` is the client of raven, and :attr:`sent` and :attr:`dropped` count
    events.

    :raises ValueError, TypeError: naming a parameter that has a wrong value; keys are not shown.

    >>> from svcrun.service.raven import RavenSender
    >>> RavenSender(sentry_dsn="https://583ca3b5@sentry.example.com/42", min_level="error")
    <RavenSender NEW>
    """

    __required__: ClassVar[Collection[str]] = ("sentry_dsn",)

    def __init__(self, **kwargs: Any) -> None:  # type checkers would make another one
        super().__init__(**kwargs)

    @property
    def __own(self) -> _Sending:
        return part_of(self, _Sending)

    @overridable
    def client(self) -> Client | None:
        """The ``raven.Client``."""
        return self.__own.client

    @overridable
    def sent(self) -> int:
        """How many events the server has taken."""
        return 0 if self.__own.courier is None else self.__own.courier.sent

    @property
    def _svcrun_undelivered(self) -> int:
        return 0 if self.__own.courier is None else self.__own.courier.dropped

    def _svcrun_parse_dsn(self, value: object) -> DSN:
        return parse_dsn(self, value)

    def _svcrun_check_options(self, options: Any) -> dict[str, Any]:
        return check_options(self, options)

    async def start(self) -> None:
        """Begin to report."""
        if self._svcrun_handler is not None and self._svcrun_handler.is_attached:
            raise AlreadyRunning(self)
        dsn: DSN = self._svcrun_find_dsn()
        courier = Courier(dsn, self.queue_size)
        client = self.__make_client(dsn, courier)
        handler = self._svcrun_make_handler(
            client.send_report, stacks=client.auto_log_stacks, take_note=client.take_note
        )
        self.__own.courier, self.__own.client, self._svcrun_handler = courier, client, handler
        try:
            handler.attach()  # at once: what waits for nothing starts meanwhile
            await courier.open()
        except BaseException:
            await self.__end(0)
            raise
        with unreported():
            log.info("reporting to %s", dsn)

    def __make_client(self, dsn: DSN, courier: Courier) -> Client:
        try:
            return Client(dsn, courier, **self.client_options)
        except Exception as error:
            accepted = f"options that raven.Client accepts ({error!r})"
            names = sorted(self.client_options)
            raise ParameterError(self, "client_options", names, accepted) from error

    async def stop(self, exception: Any = None) -> None:
        """Report `exception`, unless it was, send what waits, and end."""
        if self._svcrun_handler is not None and self._svcrun_handler.is_attached:
            self._svcrun_handler.report_unhandled(exception)
            await self.__end(self.flush_timeout)
        await super().stop(exception)

    async def __end(self, timeout: float) -> None:
        handler, courier, client = self._svcrun_handler, self.__own.courier, self.__own.client
        if handler is None or courier is None or client is None:
            return
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        try:
            await handler.finish(timeout)
        finally:
            try:
                await courier.close(max(0.0, deadline - loop.time()))
            finally:
                client.close()


class _Sending:
    """The client and the courier of a sender."""

    def __init__(self, _: RavenSender) -> None:
        self.client: Client | None = None
        self.courier: Courier | None = None

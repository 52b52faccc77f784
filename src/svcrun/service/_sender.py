"""The base class of services that report log records to Sentry, with either library."""

from __future__ import annotations

import logging
import os
from abc import abstractmethod
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from svcrun._reporting.report_queue import QUEUE_SIZE, ReportHandler
from svcrun._util.validation import number
from svcrun.errors import ParameterError, ParameterTypeError
from svcrun.log import parse_level
from svcrun.service._internals import overridable, part_of
from svcrun.service._parameters import parameter
from svcrun.service.base import Service

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from svcrun._reporting.report_queue import Filter, Report

__all__ = ("Sender",)


def _check_dsn(owner: Any, name: str, value: Any) -> Any:
    del name
    if value:
        owner._svcrun_parse_dsn(value)
    return value


def _check_level(owner: object, name: str, value: Any) -> Any:
    del owner
    parse_level(value, name)
    return value


def _check_options(owner: Any, name: str, value: Any) -> dict[str, Any]:
    try:
        options = dict(value)
    except (TypeError, ValueError):
        accepted = f"a dictionary of options of {owner._svcrun_takes_options}"
        raise ParameterTypeError(owner, name, value, accepted) from None
    owner._svcrun_check_options(options)
    return options


def _check_filters(owner: object, name: str, value: Any) -> tuple[Filter, ...]:
    accepted = "logging.Filter instances or functions of a record"
    try:
        filters = tuple(value)
    except TypeError:
        raise ParameterTypeError(owner, name, value, accepted) from None
    for one in filters:
        if not callable(one) and not callable(getattr(one, "filter", None)):
            raise ParameterTypeError(owner, name, one, accepted)
    return filters


class Sender(Service, base=True):
    """Report log records. It stops after the other services, to report how they ended."""

    _svcrun_stops_last = True
    # The function that takes the options, for error messages.
    _svcrun_takes_options: ClassVar[str]

    sentry_dsn: Any = parameter(default=None, check=_check_dsn)  # a str, a yarl.URL or the like
    min_level: int | str = parameter(default=logging.WARNING, check=_check_level)
    client_options: Mapping[str, Any] = parameter(
        default=MappingProxyType({}), check=_check_options
    )
    filters: Iterable[Filter] = parameter(default=(), check=_check_filters)
    queue_size: int = parameter(default=QUEUE_SIZE, check=number(low=1, whole=True, unit="records"))
    flush_timeout: float = parameter(default=1.5, check=number(low=0, unit="seconds"))

    @overridable
    def sent(self) -> int:
        """The number of events that the server has accepted since the start."""
        delivery = self._svcrun_reporting.delivery
        sent: int = 0 if delivery is None else delivery.sent
        return sent

    @overridable
    def dropped(self) -> int:
        """The number of records that were not reported since the start.

        There was no room in a queue, no time at the stop, an error in the report, or the server did
        not accept it.
        """
        reporting = self._svcrun_reporting
        handler, delivery = reporting.handler, reporting.delivery
        dropped: int = 0 if handler is None else handler.dropped + handler.failed
        return dropped if delivery is None else dropped + delivery.dropped

    @property
    def _svcrun_reporting(self) -> Reporting:
        return part_of(self, Reporting)

    @abstractmethod
    def _svcrun_parse_dsn(self, value: object) -> Any:
        """Return a parsed data source name.

        :raises ValueError: without the keys of the name.
        """

    @abstractmethod
    def _svcrun_check_options(self, options: dict[str, Any]) -> None:
        """Check `options`, and convert them in place.

        :raises ValueError, TypeError: naming the option that the library does not have.
        """

    def _svcrun_find_dsn(self) -> Any:
        value = self.sentry_dsn or os.environ.get("SENTRY_DSN")
        if not value:
            accepted = "the address of the project (or set SENTRY_DSN)"
            raise ParameterError(self, "sentry_dsn", self.sentry_dsn, accepted)
        return self._svcrun_parse_dsn(value)

    def _svcrun_make_handler(
        self, make: Callable[[Report], object], *, stacks: bool, snapshot: Callable[[], Any]
    ) -> ReportHandler:
        return ReportHandler(
            make,
            level=parse_level(self.min_level, "min_level"),
            filters=self.filters,
            queue_size=self.queue_size,
            stacks=stacks,
            snapshot=snapshot,
        )


class Reporting:
    """The state of a sender: the parts of its last start."""

    def __init__(self, _: Sender) -> None:
        self.handler: ReportHandler | None = None
        # Sends events to the server, and counts `sent` and `dropped` ones.
        self.delivery: Any = None
        self.client: Any = None  # that of the library

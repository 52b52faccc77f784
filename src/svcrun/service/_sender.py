"""What services that report to Sentry have in common, by whichever library they do so."""

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
from svcrun.service.base import Service

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from svcrun._reporting.report_queue import Filter, Report

__all__ = ("Sender",)


class Sender(Service):
    """Reports what is logged, and stops after the other services, to report how they did it."""

    _svcrun_stops_last = True
    _svcrun_several: ClassVar[Any] = ("client_options", "filters")

    sentry_dsn: Any = None  # a string, or what is turned into one, such as yarl.URL
    min_level: int | str = logging.WARNING
    client_options: Mapping[str, Any] = MappingProxyType({})
    filters: Iterable[Filter] = ()
    queue_size: int = QUEUE_SIZE
    flush_timeout: float = 1.5

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if self.sentry_dsn:
            self._svcrun_parse_dsn(self.sentry_dsn)
        parse_level(self.min_level, "min_level")
        self.client_options = self._svcrun_check_options(self.client_options)
        self.filters = self.__check_filters(self.filters)
        number(low=1, whole=True, unit="records")(self, "queue_size", self.queue_size)
        number(low=0, unit="seconds")(self, "flush_timeout", self.flush_timeout)

    @overridable
    def dropped(self) -> int:
        """How many were not reported: for lack of room or time, or because of an error."""
        handler = self._svcrun_handler
        if handler is None:
            return 0
        return handler.dropped + handler.failed + self._svcrun_undelivered

    @property
    def _svcrun_handler(self) -> ReportHandler | None:
        return part_of(self, Reporting).handler

    @_svcrun_handler.setter
    def _svcrun_handler(self, handler: ReportHandler) -> None:
        part_of(self, Reporting).handler = handler

    @property
    @abstractmethod
    def _svcrun_undelivered(self) -> int:
        """How many events were made, and did not get to the server."""

    @abstractmethod
    def _svcrun_parse_dsn(self, value: object) -> Any:
        """Return what a data source name says; errors show neither of its keys."""

    @abstractmethod
    def _svcrun_check_options(self, options: Any) -> dict[str, Any]:
        """Return the options of the library as a dictionary, and refuse what it does not know."""

    def _svcrun_find_dsn(self) -> Any:
        value = self.sentry_dsn or os.environ.get("SENTRY_DSN")
        if not value:
            accepted = "the address of the project (or set SENTRY_DSN)"
            raise ParameterError(self, "sentry_dsn", self.sentry_dsn, accepted)
        return self._svcrun_parse_dsn(value)

    def _svcrun_make_handler(
        self, make: Callable[[Report], object], *, stacks: bool, take_note: Callable[[], Any]
    ) -> ReportHandler:
        return ReportHandler(
            make,
            level=parse_level(self.min_level, "min_level"),
            filters=self.filters,
            queue_size=self.queue_size,
            stacks=stacks,
            take_note=take_note,
        )

    def __check_filters(self, value: Any) -> tuple[Filter, ...]:
        accepted = "logging.Filter instances or functions of a record"
        try:
            filters = tuple(value)
        except TypeError:
            raise ParameterTypeError(self, "filters", value, accepted) from None
        for one in filters:
            if not callable(one) and not callable(getattr(one, "filter", None)):
                raise ParameterTypeError(self, "filters", one, accepted)
        return filters


class Reporting:
    """The handler of a sender."""

    def __init__(self, _: Sender) -> None:
        self.handler: ReportHandler | None = None

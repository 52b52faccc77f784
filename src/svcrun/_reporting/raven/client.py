"""The client of raven, adapted to current versions of Python."""

from __future__ import annotations

import sys
import traceback
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import raven.base
from raven.handlers.logging import extract_extra

from svcrun._reporting.raven.events import EXCEPTION, MESSAGE, readable
from svcrun._util.current_service import current_name
from svcrun.errors import ParameterError

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable

    from svcrun._reporting.raven.delivery_queue import DeliveryQueue
    from svcrun._reporting.raven.dsn import DSN
    from svcrun._reporting.report_queue import Report

__all__ = ("Client", "check_options")

_OPTIONS = frozenset(
    {
        "auto_log_stacks",
        "capture_locals",
        "context",
        "enable_breadcrumbs",
        "environment",
        "exclude_paths",
        "hook_libraries",
        "ignore_exceptions",
        "include_paths",
        "include_versions",
        "install_logging_hook",
        "install_sys_hook",
        "list_max_length",
        "machine",
        "name",
        "processors",
        "raise_send_errors",
        "release",
        "repos",
        "sample_rate",
        "sanitize_keys",
        "site",
        "string_max_length",
        "tags",
    }
)

# raven installs hooks into the interpreter, logging and libraries by default.
_NO_HOOKS = {"install_sys_hook": False, "install_logging_hook": False, "hook_libraries": ()}


def check_options(owner: object, options: dict[str, Any]) -> None:
    """Check the names of options, because raven ignores unknown ones.

    :raises ValueError: naming the unknown options.
    """
    unknown = sorted(set(options) - _OPTIONS)
    if unknown:
        accepted = f"options among {', '.join(sorted(_OPTIONS))}"
        raise ParameterError(owner, "client_options", unknown, accepted)


class Client(raven.base.Client):  # type: ignore[misc]  # raven has no types
    """Make events of log records, and send them.

    :param dsn: the address of the server.
    :param queue: sends the events.
    :param options: options of ``raven.Client``. Its hooks are disabled by default.
    """

    def __init__(self, dsn: DSN, queue: DeliveryQueue, **options: Any) -> None:
        self._original_hook = sys.excepthook
        try:
            super().__init__(dsn, transport=lambda: queue, **(_NO_HOOKS | options))
            self.remote.get_transport()  # cached here, because raven's cache is not thread-safe
            tuple(self.get_processors())  # raises for an unknown processor now, not for each event
        except BaseException:
            self.close()
            raise

    def set_dsn(self, dsn: DSN | None = None, transport: Callable[..., Any] | None = None) -> None:
        """Set the address of the server; raven calls this with the arguments of ``__init__``."""
        if dsn is not None and transport is not None:
            self.remote = dsn.remote(transport)

    def close(self) -> None:
        """Remove the hooks that raven has installed, and raven's references to the client."""
        if getattr(sys.excepthook, "raven_client", None) is self:
            sys.excepthook = self._original_hook
            raven.base.__excepthook__ = None
        if raven.base.Raven is self:
            raven.base.Raven = None
        context = getattr(self, "context", None)  # None if the constructor failed early
        if context is not None:
            context.deactivate()  # a set in a module of raven refers to it

    def capture(
        self,
        event_type: str,
        data: dict[str, Any] | None = None,
        date: datetime | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> str | None:
        """Make an event and send it; `date` is now by default.

        raven itself calls ``datetime.utcnow()``, which is deprecated.
        """
        event_id: str | None = super().capture(
            event_type, data, date or datetime.now(UTC), *args, **kwargs
        )
        return event_id

    def record_exception_seen(self, exc_info: Any) -> None:
        """Do nothing.

        raven skips exceptions that it has seen. It identifies them by the addresses of exception,
        code and traceback, and never forgets these. A later exception often has the same addresses,
        so raven would skip it as well.
        """

    def get_module_versions(self) -> dict[str, str]:
        """Return the versions of Python and of the packages in ``include_paths``.

        raven itself calls pkg_resources, which was removed from setuptools.
        """
        if not self.include_versions:
            return {}
        versions = {"python": ".".join(map(str, sys.version_info[:3]))}
        for path in self.include_paths:
            for name in accumulate(path.split("."), "{}.{}".format):
                found = _find_version(name)
                if found is not None:
                    versions[name] = found
        return versions

    def snapshot(self) -> dict[str, Any]:
        """Copy the context that the current thread has set for its events."""
        context = self.context
        snapshot = {
            name: dict(value) if isinstance(value, dict) else value
            for name, value in context.get().items()
        }
        if context.breadcrumbs.buffer:
            snapshot["breadcrumbs"] = {"values": context.breadcrumbs.get_buffer()}
        return snapshot

    def send_report(self, report: Report) -> bool:
        """Make an event and add it to the queue; return whether the queue had room for it."""
        if self.remote.get_transport().is_full:
            return False
        try:
            self._capture(report)
        except Exception as error:  # noqa: BLE001 - a logged object may raise anything
            self._capture_text(report.record, error)
        return True

    def _capture(self, report: Report) -> None:
        record = report.record
        data, extra = extract_extra(record)
        extra.pop("serviceName", None)  # the tag `service` has the name
        data = report.snapshot | data | {"level": record.levelno, "logger": record.name}
        kind = MESSAGE
        arguments = {
            "message": record.msg,
            "params": record.args or (),
            "formatted": record.message,
        }
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            data |= self.get_handler(kind).capture(**arguments)
            kind = EXCEPTION
            arguments = {"exc_info": (type(error), error, error.__traceback__)}
        name = current_name()
        tags = {} if name is None else {"service": name}
        self.capture(
            kind,
            data=data,
            date=_date(record),
            stack=list(readable(report.stack)) if report.stack else False,
            tags=tags | getattr(record, "tags", {}),
            sample_rate=extra.pop("sample_rate", None),
            extra=extra,
            **arguments,
        )

    def _capture_text(self, record: logging.LogRecord, reason: Exception) -> None:
        """Send the text of a record of which raven could not make an event."""
        extra = {"not reported in full because of": repr(reason)}
        if record.exc_info:
            extra["traceback"] = "".join(traceback.format_exception(record.exc_info[1]))
        self.capture(
            MESSAGE,
            message=record.message,
            data={"level": record.levelno, "logger": record.name},
            date=_date(record),
            stack=False,
            extra=extra,
        )


def _date(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created, UTC)


@cache
def _find_version(name: str) -> str | None:
    try:
        return version(name)
    except (PackageNotFoundError, ValueError):
        found = getattr(sys.modules.get(name), "__version__", None)
        return found if isinstance(found, str) else None

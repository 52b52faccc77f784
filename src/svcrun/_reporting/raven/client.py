"""raven's client, made to do on today's Python what it was written for."""

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
from svcrun.errors import ParameterError, ParameterTypeError

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable

    from svcrun._reporting.raven.courier import Courier
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

# What raven does to the process where it is not told to leave that.
_NO_HOOKS = {"install_sys_hook": False, "install_logging_hook": False, "hook_libraries": ()}


def check_options(owner: object, options: Any) -> dict[str, Any]:
    """Return options as a dictionary, and refuse what raven does not have: it ignores that.

    :raises ValueError, TypeError: naming what is not known.
    """
    try:
        given = dict(options)
    except (TypeError, ValueError):
        accepted = "a dictionary of options of raven.Client"
        raise ParameterTypeError(owner, "client_options", options, accepted) from None
    unknown = sorted(set(given) - _OPTIONS)
    if unknown:
        accepted = f"options among {', '.join(sorted(_OPTIONS))}"
        raise ParameterError(owner, "client_options", unknown, accepted)
    return given


class Client(raven.base.Client):  # type: ignore[misc]  # raven has no types
    """Make events of log records, and send them.

    :param dsn: where to.
    :param courier: takes the events.
    :param options: as for ``raven.Client``. Its hooks are not installed unless asked for.
    """

    def __init__(self, dsn: DSN, courier: Courier, **options: Any) -> None:
        self._hook_found = sys.excepthook
        self._context: Any = None
        try:
            super().__init__(dsn, transport=lambda: courier, **(_NO_HOOKS | options))
            self.remote.get_transport()  # made by whoever is first, which is no matter for threads
            tuple(self.get_processors())  # so that it is not each event that tells of an absent one
        except BaseException:
            self.close()
            raise

    def set_dsn(self, dsn: DSN | None = None, transport: Callable[..., Any] | None = None) -> None:
        """Take the address apart as we have done."""
        if dsn is not None and transport is not None:
            self.remote = dsn.remote(transport)

    def close(self) -> None:
        """Leave the process as it was found."""
        if getattr(sys.excepthook, "raven_client", None) is self:
            sys.excepthook = self._hook_found
            raven.base.__excepthook__ = None
        if raven.base.Raven is self:
            raven.base.Raven = None
        if self._context is not None:
            self._context.deactivate()  # a set of the module holds on to it

    def capture(
        self,
        event_type: str,
        data: dict[str, Any] | None = None,
        date: datetime | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> str | None:
        """Send an event, of now if no date is given: raven's way to get that is deprecated."""
        event_id: str | None = super().capture(
            event_type, data, date or datetime.now(UTC), *args, **kwargs
        )
        return event_id

    def record_exception_seen(self, exc_info: Any) -> None:
        """Remember nothing.

        raven does so for ever, by the addresses of the exception, its code and its traceback. The
        next one, which is likely to have the same, would not be sent.
        """

    def get_module_versions(self) -> dict[str, str]:
        """Tell the versions of Python, and of the packages that ``include_paths`` names.

        raven asks pkg_resources, which is gone, or warns that it will be.
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

    def take_note(self) -> dict[str, Any]:
        """Return what the thread that logs has told the client about its events."""
        context = self.context
        note = {
            name: dict(value) if isinstance(value, dict) else value
            for name, value in context.get().items()
        }
        if context.breadcrumbs.buffer:
            note["breadcrumbs"] = {"values": context.breadcrumbs.get_buffer()}
        return note

    def send_report(self, report: Report) -> bool:
        """Make an event and have it sent; return whether there was room for it."""
        if self.remote.get_transport().is_full:
            return False
        try:
            self._capture(report)
        except Exception as error:  # noqa: BLE001 - by an odd object among what was logged, perhaps
            self._capture_text(report.record, error)
        return True

    def _capture(self, report: Report) -> None:
        record = report.record
        data, extra = extract_extra(record)
        extra.pop("serviceName", None)  # which is a tag
        data = report.note | data | {"level": record.levelno, "logger": record.name}
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

    def _capture_text(self, record: logging.LogRecord, why: Exception) -> None:
        """Send the text of a record that raven can't make a better event of."""
        extra = {"not reported in full because of": repr(why)}
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

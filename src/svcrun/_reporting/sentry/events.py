"""Make sentry's events from reports, and tag all events with their service."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import sentry_sdk
from sentry_sdk.integrations import Integration
from sentry_sdk.integrations.logging import EventHandler
from sentry_sdk.scope import Scope, add_global_event_processor, use_isolation_scope, use_scope
from sentry_sdk.utils import event_from_exception, serialize_frame

from svcrun._util.current_service import current_name

if TYPE_CHECKING:
    import logging

    from svcrun._reporting.report_queue import Report, Stack

__all__ = ("Scopes", "ServiceTags", "capture")

_EVENT_ID = "_svcrun_event_id"

_LEVELS = ((50, "fatal"), (40, "error"), (30, "warning"), (20, "info"), (0, "debug"))

# The modules of the frames between the program's log call and the handler. Sentry's is among them,
# because it wraps a method of logging.
_LOGGING = ("logging", "sentry_sdk.integrations.logging")

# Loggers of unhandled exceptions.
_UNHANDLED = ("unhandled", "asyncio.unhandled")


class ServiceTags(Integration):
    """Tag each event with its service, and report each exception once.

    This applies to events of log records, of tasks, and of the program's own captures. Sentry's own
    integration against duplicates remembers the exceptions of one task or thread only.
    """

    identifier = "svcrun"

    @staticmethod
    def setup_once() -> None:
        """Process all further events of any client; sentry calls this once per process."""
        add_global_event_processor(_process)


def _process(event: Any, hint: dict[str, Any]) -> Any:
    if sentry_sdk.get_client().get_integration(ServiceTags) is None:
        return event
    error = (hint.get("exc_info") or (None, None))[1]
    if error is not None:
        event_id = event.get("event_id")
        if vars(error).setdefault(_EVENT_ID, event_id) != event_id:
            return None
    name = current_name()
    if name is not None:
        event.setdefault("tags", {}).setdefault("service", name)
    return event


class Scopes(NamedTuple):
    """The scopes of sentry at a log call, with its tags, user and breadcrumbs."""

    isolation: Scope
    current: Scope

    @classmethod
    def fork(cls) -> Scopes:
        """Copy the current scopes."""
        return cls(sentry_sdk.get_isolation_scope().fork(), sentry_sdk.get_current_scope().fork())


def capture(report: Report) -> None:
    """Make an event of a report, and pass it to sentry.

    The snapshot of the report is the :class:`Scopes` of its log call.
    """
    record = report.record
    if not EventHandler()._can_record(record):  # noqa: SLF001 - the loggers passed to ignore_logger()
        return
    options = sentry_sdk.get_client().options
    event: dict[str, Any] = {}
    hint: dict[str, Any] = {}
    if record.exc_info and record.exc_info[1] is not None:
        mechanism = {"type": "logging", "handled": record.name not in _UNHANDLED}
        made, hint = event_from_exception(
            record.exc_info, client_options=options, mechanism=mechanism
        )
        event.update(made)
    elif report.stack is not None:
        stack = {"frames": _describe_frames(report.stack, options)}
        event["threads"] = {"values": [{"stacktrace": stack, "crashed": False, "current": True}]}
    event |= {
        "timestamp": datetime.fromtimestamp(record.created, UTC),
        "level": next(name for number, name in _LEVELS if record.levelno >= number),
        "logger": record.name,
        "logentry": {
            "message": str(record.msg),
            "formatted": record.message,
            "params": record.args,
        },
        "extra": _extra(record),
    }
    hint["log_record"] = record
    scopes: Scopes = report.snapshot
    with use_isolation_scope(scopes.isolation), use_scope(scopes.current):
        sentry_sdk.capture_event(event, hint=hint)  # type: ignore[arg-type]  # it has the keys


def _describe_frames(stack: Stack, options: dict[str, Any]) -> list[dict[str, Any]]:
    while stack and stack[-1][0].f_globals.get("__name__") in _LOGGING:
        stack = stack[:-1]
    return [
        serialize_frame(
            frame,
            tb_lineno=line,
            include_local_variables=options["include_local_variables"],
            include_source_context=options["include_source_context"],
            max_value_length=options["max_value_length"],
        )
        for frame, line in stack
    ]


def _extra(record: logging.LogRecord) -> dict[str, object]:
    known = EventHandler.COMMON_RECORD_ATTRS | {"serviceName"}  # the tag `service` has the name
    return {
        name: value
        for name, value in vars(record).items()
        if name not in known and not name.startswith("_")
    }

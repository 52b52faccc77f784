"""Events of sentry, and what all of them have in common."""

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

# Sentry has put itself in between: what comes after it is no code of the program either.
_LOGGING = ("logging", "sentry_sdk.integrations.logging")

# Where what nobody has caught is logged.
_UNHANDLED = ("unhandled", "asyncio.unhandled")


class ServiceTags(Integration):
    """Tag events with the service that they come from, and let an exception be reported once.

    That is for all of them: of the log, of tasks, and what a program captures itself. Sentry's own
    integration for the latter does not look beyond the task, or thread, that it happens in.
    """

    identifier = "svcrun"

    @staticmethod
    def setup_once() -> None:
        """Have a look at all events from now on, of any client."""
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
    """What sentry is to tell of the place of a log call: tags, the user, and what led to it."""

    isolation: Scope
    current: Scope

    @classmethod
    def fork(cls) -> Scopes:
        """Copy them as they are now."""
        return cls(sentry_sdk.get_isolation_scope().fork(), sentry_sdk.get_current_scope().fork())


def capture(report: Report) -> None:
    """Make an event of a report that carries its :class:`Scopes`, and hand it to sentry."""
    record = report.record
    if not EventHandler()._can_record(record):  # noqa: SLF001 - knows what ignore_logger() was told
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
        stack = {"frames": _describe(report.stack, options)}
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
    scopes: Scopes = report.note
    with use_isolation_scope(scopes.isolation), use_scope(scopes.current):
        sentry_sdk.capture_event(event, hint=hint)  # type: ignore[arg-type]  # it has the keys


def _describe(stack: Stack, options: dict[str, Any]) -> list[dict[str, Any]]:
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
    known = EventHandler.COMMON_RECORD_ATTRS | {"serviceName"}  # which is a tag
    return {
        name: value
        for name, value in vars(record).items()
        if name not in known and not name.startswith("_")
    }

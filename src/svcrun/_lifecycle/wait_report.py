"""Report the dependencies, context keys and lines of code that a start-up waits for."""

from __future__ import annotations

import logging

from svcrun._util.hints import TYPE_CHECKING
from svcrun._util.tasks import format_stack
from svcrun.context import awaited_keys
from svcrun.errors import show

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Collection

    from svcrun._lifecycle.dependency_graph import Traversal
    from svcrun._lifecycle.service_record import ServiceRecord

log = logging.getLogger("svcrun.lifecycle")

__all__ = ("SHOWN", "listed", "log_starts")

SHOWN = 20
"""The number of services that a log record lists."""


def log_starts(
    seconds: float,
    records: Collection[ServiceRecord],
    traversal: Traversal,
    retries: Collection[ServiceRecord],
    loop: asyncio.AbstractEventLoop,
) -> None:
    """Log the services that have not started, and where each waits.

    :param seconds: the time since the start-up began.
    :param records: all services of the start-up.
    :param traversal: the traversal that starts them.
    :param retries: the services that wait for another attempt.
    """
    waiting = [record for record in records if record in traversal.pending]
    # The services whose start() runs come first: the others wait for them.
    waiting.sort(key=lambda record: record.start_task is None)
    lines = [_describe(record, traversal, retries, loop) for record in waiting[:SHOWN]]
    if len(waiting) > SHOWN:
        lines.append(f"and {len(waiting) - SHOWN} more")
    log.warning(
        "%d of %d services have not started after %.0f s:\n%s",
        len(traversal.pending),
        len(records),
        seconds,
        "\n".join(lines),
    )


def _describe(
    record: ServiceRecord,
    traversal: Traversal,
    retries: Collection[ServiceRecord],
    loop: asyncio.AbstractEventLoop,
) -> str:
    name = show(record.service)
    if record in retries:
        return f"{name} failed, and is waiting for its next attempt"
    blockers = traversal.blockers(record)
    if blockers:
        return f"{name} is waiting for {listed([show(other.service) for other in blockers])}"
    if record.start_task is None:
        return f"{name} is about to start"
    stack = format_stack(record.start_task)
    keys = awaited_keys(loop, record.service)
    if keys:
        values = listed([f"context[{key!r}]" for key in keys])
        return f"{name} is waiting for {values}, which no service has set, at\n{stack}"
    return f"{name}: start() has neither returned nor set start_event; it is waiting at\n{stack}"


def listed(names: Collection[str]) -> str:
    """Return the first :data:`SHOWN` of `names`, separated by commas, and the number of others."""
    shown = ", ".join(list(names)[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more"

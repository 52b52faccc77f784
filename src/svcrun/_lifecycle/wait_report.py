"""Describe the dependencies, keys and lines that a start waits for."""

from __future__ import annotations

from svcrun._util.hints import TYPE_CHECKING
from svcrun._util.tasks import format_stack
from svcrun.context import awaited_keys
from svcrun.errors import show

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Collection, Iterable

    from svcrun._lifecycle.dependency_graph import Traversal
    from svcrun._lifecycle.service_record import ServiceRecord

__all__ = ("SHOWN", "describe_starts", "listed")

SHOWN = 20
"""The number of services that a log record lists."""


def describe_starts(
    records: Iterable[ServiceRecord],
    traversal: Traversal,
    retries: Collection[ServiceRecord],
    loop: asyncio.AbstractEventLoop,
) -> str:
    """Return a line for each of `records` that has not started, and where it waits.

    :param traversal: the traversal that starts them.
    :param retries: the records that wait for another attempt.
    """
    waiting = [record for record in records if record in traversal.pending]
    # The records whose start() runs come first: the others wait for them.
    waiting.sort(key=lambda record: record.task is None)
    lines = [_describe(record, traversal, retries, loop) for record in waiting[:SHOWN]]
    if len(waiting) > SHOWN:
        lines.append(f"and {len(waiting) - SHOWN} more")
    return "\n".join(lines)


def _describe(
    record: ServiceRecord,
    traversal: Traversal,
    retries: Collection[ServiceRecord],
    loop: asyncio.AbstractEventLoop,
) -> str:
    name = show(record.service)
    if record in retries:
        return f"{name} failed, and is waiting for its next attempt"
    blocking = traversal.blockers(record)
    if blocking:
        return f"{name} is waiting for {listed([show(other.service) for other in blocking])}"
    if record.task is None:
        return f"{name} is about to start"
    stack = format_stack(record.task)
    keys = awaited_keys(loop, record.service)
    if keys:
        values = listed([f"context[{key!r}]" for key in keys])
        return f"{name} is waiting for {values}, which no service has set, at\n{stack}"
    return f"{name}: start() has neither returned nor set start_event; it is waiting at\n{stack}"


def listed(names: Collection[str]) -> str:
    """Return the first :data:`SHOWN` of `names`, separated by commas, and the number of others."""
    shown = ", ".join(list(names)[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more"

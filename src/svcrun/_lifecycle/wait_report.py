"""Describe the dependencies, keys and lines that a start waits for."""

from __future__ import annotations

from svcrun._util.hints import TYPE_CHECKING
from svcrun._util.tasks import format_stack
from svcrun.context import awaited_keys
from svcrun.errors import show

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Collection, Iterable

    from svcrun._lifecycle.dependency_graph import Walk
    from svcrun._lifecycle.unit import Unit

__all__ = ("SHOWN", "describe_starts", "listed")

SHOWN = 20
"""The number of services that a log record lists."""


def describe_starts(
    units: Iterable[Unit], walk: Walk, retries: Collection[Unit], loop: asyncio.AbstractEventLoop
) -> str:
    """Return a line for each of `units` that has not started, and where it waits.

    :param walk: the walk that starts them.
    :param retries: the units that wait for another attempt.
    """
    waiting = [unit for unit in units if unit in walk.pending]
    # The units whose start() runs come first: the others wait for them.
    waiting.sort(key=lambda unit: unit.task is None)
    lines = [_describe(unit, walk, retries, loop) for unit in waiting[:SHOWN]]
    if len(waiting) > SHOWN:
        lines.append(f"and {len(waiting) - SHOWN} more")
    return "\n".join(lines)


def _describe(
    unit: Unit, walk: Walk, retries: Collection[Unit], loop: asyncio.AbstractEventLoop
) -> str:
    name = show(unit.service)
    if unit in retries:
        return f"{name} failed, and is waiting for its next attempt"
    blocking = walk.blocking(unit)
    if blocking:
        return f"{name} is waiting for {listed([show(other.service) for other in blocking])}"
    if unit.task is None:
        return f"{name} is about to start"
    stack = format_stack(unit.task)
    keys = awaited_keys(loop, unit.service)
    if keys:
        values = listed([f"context[{key!r}]" for key in keys])
        return f"{name} is waiting for {values}, which no service has set, at\n{stack}"
    return f"{name}: start() has neither returned nor set start_event; it is waiting at\n{stack}"


def listed(names: Collection[str]) -> str:
    """Return the first :data:`SHOWN` of `names`, separated by commas, and the number of others."""
    shown = ", ".join(list(names)[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more"

"""The parts of a comparison: its sides, their jobs, the metrics, and the ratio to reach."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

BASELINE, SVCRUN = "baseline", "svcrun"

Sample = Callable[[Any], Mapping[str, float]]
"""Does a job once, and returns seconds (or bytes) for one operation, by the key of a metric."""

Side = Callable[[], AbstractContextManager[Sample]]
"""Starts the processes of one side, and ends them when the block is left."""


@dataclass(frozen=True)
class Metric:
    """A number that a job yields on each side, and so a line of the table.

    :param name: the name of the line.
    :param limit: the maximum of the ratio to the baseline, or None.
    :param key: its key in the result of a job.
    :param bound: the maximum of the number, whatever the ratio, or None.
    :param unit: the unit of the number: ``"s"`` for seconds, ``"B"`` for bytes, ``"lost"`` for
        lost requests, which are added up.
    """

    name: str
    limit: float | None = None
    key: str = "cost"
    bound: float | None = None
    unit: str = "s"


@dataclass(frozen=True)
class Job:
    """The work that the sides of a case do in turn: one, the other, the one again ...

    :param request: the request that the programs of the sides get.
    :param turns: how often each side does it before the next job.
    """

    request: Any
    metrics: Sequence[Metric]
    turns: int = 5


@dataclass(frozen=True)
class Case:
    """Sides that do the same jobs, one after the other, in processes that live side by side.

    :param target: the target that the case belongs to.
    :param loop: the event loop of all sides, "" without one.
    :param sides: the baseline, and the sides that are compared with it.
    """

    target: str
    loop: str
    sides: Mapping[str, Side]
    jobs: Sequence[Job]


@dataclass(frozen=True)
class Budget:
    """The amount of work to measure.

    :param python: the interpreter that is measured.
    :param loops: the event loops to measure on: "stock", "uvloop".
    :param also: other libraries to measure, besides the baseline and svcrun.
    :param scale: a factor for the amount of work in a job; with 1.0 results are worth quoting.
    """

    python: str
    loops: Sequence[str]
    also: Sequence[str] = ()
    scale: float = 1.0

    def sides(self, *known: str) -> list[str]:
        """Return the sides to measure: always two, and those *known* ones that were requested."""
        return [BASELINE, SVCRUN, *(side for side in self.also if side in known)]

    def amount(self, full: int, *, least: int = 1) -> int:
        """Scale an amount of work."""
        return max(least, round(full * self.scale))


@dataclass(frozen=True)
class Target:
    """A subject of measurements.

    :param name: its name on the command line.
    :param description: a description of the comparison, printed above its part of the table.
    :param cases: returns its cases. It may raise :class:`Unavailable` after some of them, so that
        the others are skipped.
    """

    name: str
    description: str
    cases: Callable[[Budget], Iterable[Case]]


class Unavailable(Exception):
    """A program or library that a measurement needs is missing; the text names it."""

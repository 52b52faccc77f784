"""What a comparison is: its sides, their jobs, what is measured, and the ratio to be reached."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

BASELINE, SVCRUN = "baseline", "svcrun"

Sample = Callable[[Any], Mapping[str, float]]
"""Does a job once, and tells what it took: seconds for one operation, by the key of a metric."""

Side = Callable[[], AbstractContextManager[Sample]]
"""Starts the processes of one side, and ends them when the block is left."""


@dataclass(frozen=True)
class Metric:
    """A number that a job yields on each side, and so a line of the table.

    :param name: what the line is called.
    :param limit: the highest ratio to the baseline that is good enough; None leaves that open.
    :param key: where it is found in the result of a job.
    :param bound: the most seconds that are good enough, whatever the ratio; None leaves that open.
    """

    name: str
    limit: float | None = None
    key: str = "cost"
    bound: float | None = None


@dataclass(frozen=True)
class Job:
    """What the sides of a case do in turn: one, the other, the one again ...

    :param what: what the sides get told to do.
    :param turns: how often each does it, before the next job.
    """

    what: Any
    metrics: Sequence[Metric]
    turns: int = 5


@dataclass(frozen=True)
class Case:
    """Sides that do the same jobs, at the same time but for who waits.

    :param target: the target that the case belongs to.
    :param loop: the event loop of all sides, "" where there is none.
    :param sides: what is compared with the baseline, and the baseline.
    """

    target: str
    loop: str
    sides: Mapping[str, Side]
    jobs: Sequence[Job]


@dataclass(frozen=True)
class Budget:
    """How much to measure.

    :param python: the interpreter that is measured.
    :param loops: the event loops to measure on: "stock", "uvloop".
    :param also: other libraries to measure, besides the baseline and svcrun.
    :param scale: the amount of work in a job, in relation to what makes it worth quoting.
    """

    python: str
    loops: Sequence[str]
    also: Sequence[str] = ()
    scale: float = 1.0

    def sides(self, *known: str) -> list[str]:
        """List the sides to measure: always two, and of those *known* the ones asked for."""
        return [BASELINE, SVCRUN, *(side for side in self.also if side in known)]

    def amount(self, full: int, *, least: int = 1) -> int:
        """Scale an amount of work."""
        return max(least, round(full * self.scale))


@dataclass(frozen=True)
class Target:
    """A thing to be fast at.

    :param name: what it is called on the command line.
    :param what: what is compared, in a few lines that stand above its part of the table.
    :param cases: makes its cases, or raises :class:`Unavailable`; it may do so after some of
        them, and only the others are left out.
    """

    name: str
    what: str
    cases: Callable[[Budget], Iterable[Case]]


class Unavailable(Exception):
    """Something that a measurement needs is not there; the text says what."""

"""What a comparison is: its sides, what is measured on each, and the ratio to be reached."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

BASELINE, SVCRUN = "baseline", "svcrun"

Measure = Callable[[], Mapping[str, float]]
"""Measures one side once, in fresh processes: seconds for one operation, by the key of a metric."""


@dataclass(frozen=True)
class Metric:
    """One number that each side of a case yields, and so one line of the table.

    :param key: the key in the result of a measurement.
    :param name: what the line is called.
    :param limit: the highest ratio to the baseline that is good enough; None if that is left open.
    """

    key: str
    name: str
    limit: float | None = None


@dataclass(frozen=True)
class Case:
    """Sides that are measured one after the other, again and again.

    :param target: the target that the case belongs to.
    :param loop: the event loop of all sides, "" where there is none.
    :param sides: how to measure each; the others are compared with the baseline.
    """

    target: str
    loop: str
    sides: Mapping[str, Measure]
    metrics: Sequence[Metric]


@dataclass(frozen=True)
class Budget:
    """How much to measure.

    :param python: the interpreter that is measured.
    :param loops: the event loops to measure on: "stock", "uvloop".
    :param also: other libraries to measure, besides the baseline and svcrun.
    :param scale: the amount of work in a measurement; 1 is what the numbers are worth quoting at.
    """

    python: str
    loops: Sequence[str]
    also: Sequence[str] = ()
    scale: float = 1.0

    def sides(self, *known: str) -> list[str]:
        """List the sides to measure: the two that always are, and what is asked for of those *known*."""
        return [BASELINE, SVCRUN, *(side for side in self.also if side in known)]

    def repeats(self, full: int, *, least: int = 1) -> int:
        """Scale a number of repetitions."""
        return max(least, round(full * self.scale))


@dataclass(frozen=True)
class Target:
    """A thing to be fast at.

    :param name: what it is called on the command line.
    :param what: what is compared, in a few lines that stand above its part of the table.
    :param cases: makes its cases; one that can't be measured here raises :class:`Unavailable`.
    """

    name: str
    what: str
    cases: Callable[[Budget], Sequence[Case]]


class Unavailable(Exception):  # noqa: N818 - not an error: a reason to leave something out
    """Something that a measurement needs is not there."""

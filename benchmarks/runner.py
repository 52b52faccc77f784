"""Measure the sides of each case in turn, round after round, and compare."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from benchmarks.cases import BASELINE, SVCRUN, Case, Metric


@dataclass
class Row:
    """What was measured for one metric of one case."""

    target: str
    loop: str
    metric: Metric
    samples: dict[str, list[float]] = field(default_factory=dict)
    """Seconds for one operation, by side, one of each round."""

    def median(self, side: str) -> float:
        """Return the seconds that *side* takes."""
        return statistics.median(self.samples[side])

    def ratios(self, side: str = SVCRUN) -> list[float]:
        """Compare what was measured one right after the other, in each round."""
        pairs = zip(self.samples[side], self.samples[BASELINE], strict=True)
        return [cost / baseline for cost, baseline in pairs]

    def ratio(self, side: str = SVCRUN) -> float:
        """Return the cost of *side* in relation to plain asyncio.

        The median of the rounds' own ratios: the speed of a machine changes from one minute to the
        next, and neighbours in time share it.
        """
        return statistics.median(self.ratios(side))

    @property
    def is_good(self) -> bool | None:
        """Whether svcrun reaches what it has to; None where nothing is asked."""
        return None if self.metric.limit is None else self.ratio() <= self.metric.limit


def measure(cases: Sequence[Case], rounds: int, tell: Callable[[str], object]) -> list[Row]:
    """Measure *cases* in so many *rounds*.

    :param tell: called with a line that says what is being measured.
    """
    rows = {id(case): [Row(case.target, case.loop, m) for m in case.metrics] for case in cases}
    for number in range(rounds):
        for case in cases:
            tell(f"round {number + 1} of {rounds}: {case.target} {case.loop}")
            for side in in_turn(case.sides, number):
                found = case.sides[side]()
                for row in rows[id(case)]:
                    row.samples.setdefault(side, []).append(found[row.metric.key])
    return [row for case in cases for row in rows[id(case)]]


def in_turn(sides: Iterable[str], number: int) -> list[str]:
    """Let every other round begin with the last side: what comes second may find warmer caches."""
    order = list(sides)
    return order if number % 2 == 0 else order[::-1]

"""Run the jobs of each case on all sides in turn, round after round, and compare the costs."""

import contextlib
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from benchmarks.cases import BASELINE, SVCRUN, Case, Job, Metric


@dataclass
class Row:
    """The measurements of one metric."""

    target: str
    loop: str
    metric: Metric
    samples: dict[str, list[float]] = field(default_factory=dict)
    """Seconds for one operation, by side, in the order they were measured."""

    def median(self, side: str) -> float:
        """Return the median of the numbers of *side*, or the sum of lost requests."""
        if self.metric.unit == "lost":
            return sum(self.samples[side])
        return statistics.median(self.samples[side])

    def ratio(self, side: str = SVCRUN) -> float:
        """Return the cost of *side* in relation to the baseline.

        It is the median of the ratios of all turns. The speed of a machine changes all the time,
        and measurements of the same turn share it.
        """
        if self.metric.unit == "lost":
            return self.median(side) / max(self.median(BASELINE), 1)
        return statistics.median(self._ratios(side))

    def middle_half(self) -> tuple[float, float]:
        """Return the first and the third quartile of the ratios of all turns."""
        if self.metric.unit == "lost" or len(self.samples[SVCRUN]) == 1:
            return self.ratio(), self.ratio()
        ratios = self._ratios(SVCRUN)
        low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
        return low, high

    @property
    def is_good(self) -> bool | None:
        """Whether svcrun reaches the limits; None without any."""
        limit, bound = self.metric.limit, self.metric.bound
        if limit is None and bound is None:
            return None
        return (limit is None or self.ratio() <= limit) and (
            bound is None or self.median(SVCRUN) <= bound
        )

    def _ratios(self, side: str) -> list[float]:
        pairs = zip(self.samples[side], self.samples[BASELINE], strict=True)
        return [cost / baseline for cost, baseline in pairs]


def measure(
    cases: Sequence[Case], rounds: int, show_progress: Callable[[str], object]
) -> list[Row]:
    """Measure *cases* in so many *rounds*, with fresh processes in each.

    :param show_progress: called with a line that names the current measurement.
    """
    rows = {
        (number, job.request, metric.key): Row(case.target, case.loop, metric)
        for number, case in enumerate(cases)
        for job in case.jobs
        for metric in job.metrics
    }
    for done in range(rounds):
        for number, case in enumerate(cases):
            show_progress(f"round {done + 1} of {rounds}: {case.target} {case.loop}")
            with contextlib.ExitStack() as stack:
                sides = {side: stack.enter_context(start()) for side, start in case.sides.items()}
                for job, turn in turns(case.jobs):
                    for side in in_turn(sides, done + turn):
                        found = sides[side](job.request)
                        for metric in job.metrics:
                            row = rows[number, job.request, metric.key]
                            row.samples.setdefault(side, []).append(found[metric.key])
    return list(rows.values())


def turns(jobs: Sequence[Job]) -> Iterable[tuple[Job, int]]:
    """Yield each job once per turn, with the number of the turn."""
    return ((job, turn) for job in jobs for turn in range(job.turns))


def in_turn(sides: Iterable[str], number: int) -> list[str]:
    """Reverse the order of the sides in every other turn: the second one may find warm caches."""
    order = list(sides)
    return order if number % 2 == 0 else order[::-1]

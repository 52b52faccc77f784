"""Find the times of a cron expression, one after the other."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from benchmarks.programs.protocol import answer, requests, run

BEGINNING = datetime(2026, 1, 1, tzinfo=UTC)

Find = Callable[[int], object]


def baseline(line: str, zone: str) -> Find:
    """Use croniter as its documentation does for time zones."""
    from croniter import croniter

    def find(times: int) -> object:
        found = croniter(line, BEGINNING.astimezone(ZoneInfo(zone)))
        for _ in range(times):
            found.get_next(datetime)
        return found

    return find


def svcrun(line: str, zone: str) -> Find:
    """Use the function of a CronCallback."""
    from svcrun.cron import CronSpec

    spec = CronSpec(line, zone)

    def find(times: int) -> object:
        found = BEGINNING.timestamp()
        for _ in range(times):
            found = spec.next(found)
        return found

    return find


def main(side: str, line: str, zone: str) -> None:
    """Find the requested number of times, and answer with the cost of one."""
    find = {"baseline": baseline, "svcrun": svcrun}[side](line, zone)
    for times in requests():
        began = time.process_time()
        find(times)
        answer((time.process_time() - began) / times)


if __name__ == "__main__":
    run(main)

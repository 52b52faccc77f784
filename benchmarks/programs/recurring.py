"""Call many functions again and again, each on a schedule of its own."""

import asyncio
import gc
import importlib
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from benchmarks.programs.protocol import answer, loop_factory, requests, run

INTERVAL = 0.1

# How much earlier than its moment a call may come: uvloop counts in milliseconds.
EARLY = 0.005

# Returns what ends the calls and waits for those under way.
Begin = Callable[[Sequence["Work"]], Callable[[], Awaitable[object]]]


class Work:
    """A function to be called, which notes when that was.

    :param first: when it is due for the first time, by ``time.monotonic()``.
    :param busy: the seconds for which it blocks the loop.
    """

    def __init__(self, first: float, busy: float) -> None:
        self.first = first
        self.busy = busy
        self.times: list[float] = []

    async def tick(self) -> None:
        """Be called."""
        now = time.monotonic()
        self.times.append(now)
        if self.busy:
            while time.monotonic() < now + self.busy:
                pass

    def delay(self) -> float:
        """Return the seconds until it is due for the first time."""
        return max(0.0, self.first - time.monotonic())

    def lateness(self, since: float) -> list[float]:
        """Return by how much calls were late, in seconds, for those that came after *since*."""
        return [
            (when - self.first + EARLY) % INTERVAL - EARLY for when in self.times if when > since
        ]


def baseline(works: Sequence[Work]) -> Callable[[], Awaitable[object]]:
    """Have a timer of the loop for each, that starts a task and the next timer."""
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()  # the loop itself holds them by weak references
    timers: dict[Work, asyncio.TimerHandle] = {}

    def ring(work: Work, moment: float) -> None:
        task = loop.create_task(work.tick())
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        moment += INTERVAL
        timers[work] = loop.call_at(moment, ring, work, moment)

    for work in works:
        timers[work] = loop.call_at(work.first, ring, work, work.first)

    async def end() -> None:
        for timer in timers.values():
            timer.cancel()
        if tasks:
            await asyncio.wait(tasks)

    return end


def svcrun(works: Sequence[Work]) -> Callable[[], Awaitable[object]]:
    """Have a PeriodicCallback of svcrun for each."""
    from svcrun import PeriodicCallback

    callbacks = [PeriodicCallback(work.tick) for work in works]
    for callback, work in zip(callbacks, works, strict=True):
        callback.start(INTERVAL, delay=work.delay())
    return lambda: asyncio.gather(*[callback.finish() for callback in callbacks])


def aiomisc(works: Sequence[Work]) -> Callable[[], Awaitable[object]]:
    """Have a PeriodicCallback of aiomisc for each."""
    library = importlib.import_module("aiomisc")
    callbacks = [library.PeriodicCallback(work.tick) for work in works]
    for callback, work in zip(callbacks, works, strict=True):
        callback.start(INTERVAL, delay=work.delay())
    return lambda: asyncio.gather(
        *[callback.stop(return_exceptions=True) for callback in callbacks]
    )


def apscheduler(works: Sequence[Work]) -> Callable[[], Awaitable[object]]:
    """Have a job of APScheduler for each; as with svcrun, one call makes up for those missed."""
    library = importlib.import_module("apscheduler.schedulers.asyncio")
    defaults = {"coalesce": True, "misfire_grace_time": None, "max_instances": 1}
    scheduler = library.AsyncIOScheduler(timezone=UTC, job_defaults=defaults)
    ahead = time.time() - time.monotonic()
    for work in works:
        first = datetime.fromtimestamp(work.first + ahead, UTC)
        scheduler.add_job(
            work.tick, "interval", seconds=INTERVAL, start_date=first, next_run_time=first
        )
    scheduler.start()

    async def end() -> None:
        scheduler.shutdown()
        await asyncio.sleep(0)  # which only asks for the end

    return end


SIDES: dict[str, Begin] = {
    "baseline": baseline,
    "svcrun": svcrun,
    "aiomisc": aiomisc,
    "apscheduler": apscheduler,
}


async def measure(
    begin: Begin, number: int, ticks: int, spread: float, busy: float
) -> dict[str, float]:
    """Call *number* functions for as long as *ticks* intervals.

    :param spread: the part of the interval over which their moments are spread.
    :param busy: the seconds for which each call blocks the loop.
    """
    began = time.monotonic()
    # Time enough to set up all of them.
    first = began + 0.1 + number * 1e-4
    works = [Work(first + INTERVAL * spread * index / number, busy) for index in range(number)]
    end = begin(works)

    await until(first + 2 * INTERVAL)
    gc.collect()
    since, cpu = time.monotonic(), time.process_time()
    called = sum(len(work.times) for work in works)
    last = since + ticks * INTERVAL
    await until(last)
    called = sum(len(work.times) for work in works) - called
    cpu = time.process_time() - cpu

    # From when it was to end: a loop that is busy comes to that later.
    await end()
    stop = time.monotonic() - last

    late = [lateness for work in works if (lateness := work.lateness(since))]
    return {
        "cost": cpu / called,
        "late": max(1e-9, statistics.quantiles([one for its in late for one in its], n=100)[-1]),
        "drift": max(1e-9, abs(statistics.median(its[-1] - its[0] for its in late))),
        "stop": stop,
    }


async def until(moment: float) -> None:
    """Sleep until a moment of ``time.monotonic()``."""
    await asyncio.sleep(max(0.0, moment - time.monotonic()))


def main(side: str, loop: str) -> None:
    """Do as asked, each time on a new event loop."""
    factory: Any = loop_factory(loop)
    for job in requests():
        with asyncio.Runner(loop_factory=factory) as runner:
            answer(runner.run(measure(SIDES[side], *job)))


if __name__ == "__main__":
    run(main)

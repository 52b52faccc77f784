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

# Seconds by which a call may be early, as uvloop counts in milliseconds.
EARLY = 0.005

# Returns a function that ends the calls and waits for those in flight.
Begin = Callable[[Sequence["Work"]], Callable[[], Awaitable[object]]]


class Work:
    """A function that records the times of its calls.

    :param first: the time of the first call, by ``time.monotonic()``.
    :param busy: the seconds for which it blocks the loop.
    """

    def __init__(self, first: float, busy: float) -> None:
        self.first = first
        self.busy = busy
        self.times: list[float] = []

    async def tick(self) -> None:
        """Record a call."""
        now = time.monotonic()
        self.times.append(now)
        if self.busy:
            while time.monotonic() < now + self.busy:
                pass

    def delay(self) -> float:
        """Return the seconds until the first call."""
        return max(0.0, self.first - time.monotonic())

    def lateness(self, since: float) -> list[float]:
        """Return the seconds by which calls after *since* were late."""
        return [
            (when - self.first + EARLY) % INTERVAL - EARLY for when in self.times if when > since
        ]


def baseline(works: Sequence[Work]) -> Callable[[], Awaitable[object]]:
    """Use a timer of the loop for each, which starts a task and the next timer."""
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()  # the loop itself holds them by weak references
    timers: dict[Work, asyncio.TimerHandle] = {}

    def fire(work: Work, moment: float) -> None:
        task = loop.create_task(work.tick())
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        moment += INTERVAL
        timers[work] = loop.call_at(moment, fire, work, moment)

    for work in works:
        timers[work] = loop.call_at(work.first, fire, work, work.first)

    async def end() -> None:
        for timer in timers.values():
            timer.cancel()
        if tasks:
            await asyncio.wait(tasks)

    return end


def svcrun(works: Sequence[Work]) -> Callable[[], Awaitable[object]]:
    """Use a PeriodicCallback of svcrun for each."""
    from svcrun import PeriodicCallback

    callbacks = [PeriodicCallback(work.tick) for work in works]
    for callback, work in zip(callbacks, works, strict=True):
        callback.start(INTERVAL, delay=work.delay())
    return lambda: asyncio.gather(*[callback.finish() for callback in callbacks])


def aiomisc(works: Sequence[Work]) -> Callable[[], Awaitable[object]]:
    """Use a PeriodicCallback of aiomisc for each."""
    library = importlib.import_module("aiomisc")
    callbacks = [library.PeriodicCallback(work.tick) for work in works]
    for callback, work in zip(callbacks, works, strict=True):
        callback.start(INTERVAL, delay=work.delay())
    return lambda: asyncio.gather(
        *[callback.stop(return_exceptions=True) for callback in callbacks]
    )


def apscheduler(works: Sequence[Work]) -> Callable[[], Awaitable[object]]:
    """Use a job of APScheduler for each; as with svcrun, one call replaces those missed."""
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

    :param spread: the part of the interval over which the first calls are spread.
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

    # Since the time of the stop, which a busy loop reaches late.
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
    """Sleep until a time of ``time.monotonic()``."""
    await asyncio.sleep(max(0.0, moment - time.monotonic()))


def main(side: str, loop: str) -> None:
    """Run each requested job on a new event loop."""
    factory: Any = loop_factory(loop)
    for job in requests():
        with asyncio.Runner(loop_factory=factory) as runner:
            answer(runner.run(measure(SIDES[side], *job)))


if __name__ == "__main__":
    run(main)

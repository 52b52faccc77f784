"""Laws of SentrySender in programs of their own, from their start to their exit code."""

import asyncio
from collections.abc import Iterator

import pytest

pytest.importorskip("sentry_sdk")

from tests.reporting.envelopes import EnvelopeCollector, Event
from tests.support import Outcome, Program, loop_factories

PROGRAM = """
import asyncio, logging, sys, threading
from svcrun import Service, entrypoint
from svcrun.service.sentry import SentrySender

ENDING = sys.argv[1]


class Worker(Service):
    async def start(self):
        self.start_event.set()
        if ENDING == "crash":
            await asyncio.sleep(0.01)
            raise ValueError("crash")
        await asyncio.Event().wait()

    async def stop(self, exception=None):
        await asyncio.sleep(0.05)
        if ENDING == "stop":
            raise ValueError("stop")


def fail():
    raise ValueError("thread")


async def main():
    print("started", flush=True)
    if ENDING == "block":
        raise ValueError("block")
    if ENDING == "thread":
        thread = threading.Thread(target=fail)
        thread.start()
        await asyncio.to_thread(thread.join)
        return
    await asyncio.Event().wait()


with entrypoint(SentrySender(flush_timeout=20), Worker(name="worker")) as loop:
    loop.run_until_complete(main())
"""


@pytest.fixture
def collector() -> Iterator[EnvelopeCollector]:
    with EnvelopeCollector() as server:
        yield server


def run(collector: EnvelopeCollector, ending: str, **env: str) -> Outcome:
    with Program(PROGRAM, ending, env={"SENTRY_DSN": collector.dsn(), **env}) as program:
        program.wait_for_line("started")
        if ending == "stop":
            program.terminate()
        return program.wait()


def only_error(collector: EnvelopeCollector) -> Event:
    (event,) = (event for event in collector.events if "exception" in event)
    return event


@pytest.mark.parametrize("loop", loop_factories())
def test_a_crash_is_reported_once_and_ends_the_program(
    collector: EnvelopeCollector, loop: str
) -> None:
    outcome = run(collector, "crash", SVCRUN_USE_UVLOOP=str(int(loop == "uvloop")))
    assert outcome.returncode == 1
    assert outcome.stderr.endswith("ValueError: crash\n")
    event = only_error(collector)
    assert event["exception"]["values"][-1]["value"] == "crash"
    assert event["tags"] == {"service": "worker"}


@pytest.mark.parametrize("ending", ["block", "stop"])
def test_the_error_that_ends_a_program_is_reported(
    collector: EnvelopeCollector, ending: str
) -> None:
    outcome = run(collector, ending)
    assert outcome.returncode == 1
    assert only_error(collector)["exception"]["values"][-1]["value"] == ending
    assert "pending events" not in outcome.stderr  # as sentry says by itself at the end


def test_the_error_that_ends_a_thread_is_reported(collector: EnvelopeCollector) -> None:
    outcome = run(collector, "thread")
    assert outcome.returncode == 0
    assert only_error(collector)["exception"]["values"][-1]["value"] == "thread"


async def test_a_program_ends_in_time_without_a_listening_server() -> None:
    with EnvelopeCollector(listening=False) as collector:
        begin = asyncio.get_running_loop().time()
        outcome = await asyncio.to_thread(run, collector, "block")
        assert outcome.returncode == 1
        assert outcome.stderr.count("dropped events for") >= 1
        assert asyncio.get_running_loop().time() - begin < 30

"""The reports of RavenSender about a program that ends in various ways."""

from collections import Counter
from collections.abc import Callable, Iterator

import pytest

pytest.importorskip("raven")
pytest.importorskip("aiohttp")

from tests.reporting.collectors import Collector, hang
from tests.support import Program

Start = Callable[..., Program]

PROGRAM = """\
import asyncio, logging, sys
from svcrun import Service, entrypoint
from svcrun.service.raven import RavenSender

sender = RavenSender(sentry_dsn=sys.argv[1], flush_timeout=float(sys.argv[2]))

class Worker(Service):
    async def start(self):
        self.start_event.set()
        await asyncio.Event().wait()

class Crashing(Service):
    async def start(self):
        self.start_event.set()
        await asyncio.sleep(0)
        raise ValueError("crash")

class FailingStart(Service):
    async def start(self):
        await asyncio.sleep(0)
        raise ValueError("start")

class FailingStop(Service):
    async def stop(self, exception=None):
        await asyncio.sleep(0.05)
        raise ValueError("stop")
    async def start(self):
        pass

class FailingAtCancel(Service):
    async def start(self):
        self.start_event.set()
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError("cancel")

def fail():
    raise ValueError("callback")

def run(*services, body="loop.run_forever()"):
    with entrypoint(sender, *services, log_format="stream") as loop:
        exec(body)

"""


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


def seen(collector: Collector) -> Counter[tuple[str, str]]:
    """Count the events by message and error."""
    return Counter(
        (
            event["message"].partition("\n")[0],
            event["exception"]["values"][-1]["value"] if "exception" in event else "",
        )
        for event in collector.events
    )


@pytest.mark.parametrize(
    ("call", "expected", "code"),
    [
        ("run(Crashing())", {("<Crashing FAILED> crashed", "crash")}, 1),
        ("run(FailingStart())", {("<FailingStart STARTING> failed to start", "start")}, 1),
        (
            "run(FailingStop(), body='')",
            {("stop() of <FailingStop STOPPING> failed", "stop")},
            1,
        ),
        (
            "run(FailingAtCancel(), body='')",
            {("start() of <FailingAtCancel STOPPING> failed while the service was", "cancel")},
            1,
        ),
        ("run(body='raise KeyError(1)')", {("Unhandled exception", "1")}, 1),
        (
            "run(body='loop.call_soon(fail); loop.call_later(0.1, loop.stop); loop.run_forever()')",
            {("Exception in callback", "callback")},
            0,
        ),
        ("run(body='sys.exit(3)')", set[tuple[str, str]](), 3),
        ("run(Worker(), body='')", set[tuple[str, str]](), 0),
    ],
    ids=["crash", "start", "stop", "cancel", "block", "loop", "exit", "well"],
)
def test_each_failure_of_a_program_is_reported_once(
    run_program: Start,
    collector: Collector,
    call: str,
    expected: set[tuple[str, str]],
    code: int,
) -> None:
    outcome = run_program(PROGRAM + call, collector.dsn(), "20").wait()
    assert outcome.returncode == code, outcome.stderr
    found = seen(collector)
    for what in expected:
        message, error = what
        times = [n for (m, e), n in found.items() if m.startswith(message) and e == error]
        assert times == [1], found
    errors = [error for _, error in found if error]
    assert len(errors) == len(expected), found
    assert "Warning" not in outcome.stderr
    assert "secret" not in outcome.stderr


def test_a_crash_is_tagged_with_its_service(run_program: Start, collector: Collector) -> None:
    source = PROGRAM + (
        "class Talking(Worker):\n"
        "    async def start(self):\n"
        "        logging.error('here')\n"
        "run(Talking(name='first'), body='')\n"
    )
    assert run_program(source, collector.dsn(), "20").wait().returncode == 0
    (event,) = collector.events
    assert event["tags"] == {"service": "first"}


@pytest.mark.parametrize("listening", [True, False], ids=["hangs", "absent"])
def test_a_signal_ends_the_program_in_time_if_the_server_does_not_respond(
    run_program: Start, listening: bool
) -> None:
    with Collector(listening=listening) as collector:
        collector.usual = hang
        source = PROGRAM + (
            'run(body=\'for _ in range(50): logging.error("here")\\n'
            'print("ready", flush=True); loop.run_forever()\')'
        )
        program = run_program(source, collector.dsn(), "1.5")
        program.wait_for_line("ready")
        program.terminate()
        outcome = program.wait()
    assert outcome.returncode == 0, outcome.stderr
    assert "50 in all" in outcome.stderr

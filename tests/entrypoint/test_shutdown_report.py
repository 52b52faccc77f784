"""A shutdown is not silent (C19a)."""

import asyncio
import contextlib
import logging
import os
import pty
import re
import subprocess
import sys
from typing import Any

import pytest

from svcrun import Service, entrypoint
from svcrun._runtime.shutdown_report import ShutdownReport
from tests.entrypoint.actors import Failing, Server
from tests.entrypoint.forms import Form
from tests.entrypoint.programs import Run
from tests.support import PATIENCE, eventually
from tests.support_clock import VirtualClockLoop


def runtime_messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the log of the runtime, without figures."""
    messages = [r.getMessage() for r in caplog.records if r.name == "svcrun.entrypoint"]
    return [re.sub(r"\d+\.\d+", "N", message) for message in messages]


END = "shutdown completed in N s, all services have stopped"


async def graceful(ep: entrypoint) -> None:
    await ep.graceful_shutdown()


async def fail(_: entrypoint) -> None:
    raise LookupError("of the block")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (graceful, "graceful_shutdown() called, shutting down"),
        (fail, "the block raised LookupError: of the block, shutting down"),
    ],
)
def test_the_reason_and_the_end_of_a_shutdown_are_logged(
    live: Form, body: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with contextlib.suppress(LookupError):
        live(Server(log=[]), body=body)
    assert runtime_messages(caplog) == [reason, END]


def test_the_crash_that_began_a_shutdown_is_logged_as_its_reason(
    live: Form, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    service = Failing(log=[], phase="run", error=LookupError("crash"))

    async def wait(_: entrypoint) -> None:
        await asyncio.Event().wait()

    with pytest.raises(LookupError):
        live(service, body=wait)
    assert runtime_messages(caplog) == ["shutting down because of LookupError('crash')", END]


def test_a_signal_is_the_reason_of_a_shutdown(run: Run) -> None:
    outcome = run(
        """
        with entrypoint(log_format="plain") as loop:
            os.kill(os.getpid(), signal.SIGTERM)
            loop.run_forever()
        """
    )
    lines = outcome.stderr.splitlines()
    assert "SIGTERM received, shutting down" in lines[0]
    assert "Ctrl-C" not in lines[0]
    assert "all services have stopped" in lines[-1]


def test_a_quick_end_of_a_block_is_logged_at_debug_level_only(
    live: Form, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "svcrun.entrypoint")
    live(Server(log=[]))
    assert runtime_messages(caplog) == ["the block has ended, shutting down", END]
    records = [record for record in caplog.records if record.name == "svcrun.entrypoint"]
    assert {record.levelno for record in records} == {logging.DEBUG}


class Slow(Service):
    """A service whose stop takes a given time."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.go_on = asyncio.Event()

    async def start(self) -> None:
        """Be ready at once."""

    async def stop(self, exception: BaseException | None = None) -> None:
        await self.go_on.wait()


def in_progress(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [line for line in runtime_messages(caplog) if "still in progress" in line]


def test_a_shutdown_in_progress_logs_the_services_that_it_waits_for(
    live: Form, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    slow = Slow(name="culprit")

    async def release() -> None:
        await eventually(lambda: in_progress(caplog))
        slow.go_on.set()

    tasks: list[Any] = []

    async def body(_: entrypoint) -> None:
        tasks.append(asyncio.get_running_loop().create_task(release()))

    live(slow, Server(log=[], name="other"), body=body)
    line = in_progress(caplog)[0]
    assert "name='culprit' STOPPING> (File" in line
    assert "in Slow.stop" in line
    assert "other" not in line
    assert runtime_messages(caplog)[-1] == END


@pytest.mark.parametrize("what", ["task", "thread", "builtin", "hook", "block"])
def test_each_task_and_thread_that_the_shutdown_waits_for_is_named(run: Run, what: str) -> None:
    outcome = run(
        """
        import time

        def job():
            time.sleep(1.3)

        kept = set()  # the loop itself would let the collector take the task

        async def stubborn():
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(1.3)

        async def body():
            loop = asyncio.get_running_loop()
            if WHAT == "task":
                kept.add(loop.create_task(stubborn(), name="stubborn"))
            elif WHAT == "thread":
                loop.run_in_executor(None, job)
            elif WHAT == "builtin":
                loop.run_in_executor(None, time.sleep, 1.3)
            elif WHAT == "block":
                loop.call_soon(os.kill, os.getpid(), signal.SIGTERM)
                await stubborn()
            await asyncio.sleep(0.01)

        async def late(entrypoint, services):
            await asyncio.sleep(1.3)

        ep = entrypoint(log_format="plain")
        if WHAT == "hook":
            ep.pre_stop.connect(late)
        with ep as loop:
            loop.run_until_complete(body())
        """.replace("WHAT", repr(what))
    )
    assert outcome.returncode == 0
    lines = [line for line in outcome.stderr.splitlines() if "still in progress after" in line]
    expected = {
        "task": "task stubborn (File",
        "thread": "in job)",
        "builtin": "waiting for thread ",
        "hook": "hook pre_stop (File",
        "block": "the block (File",
    }[what]
    assert expected in lines[0]
    assert "all services have stopped" in outcome.stderr.splitlines()[-1]


def test_a_shutdown_is_reported_at_growing_intervals(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    loop = VirtualClockLoop()
    report = ShutdownReport(loop, logging.getLogger("svcrun.entrypoint"), lambda: ["it"] * 30)
    report.begin(logging.DEBUG, "begun")
    loop.advance(40)
    report.end(complete=False)
    assert [line.split(",")[0] for line in in_progress(caplog)] == [
        f"shutdown still in progress after {seconds} s" for seconds in (1, 2, 4, 8, 16, 32)
    ]
    assert in_progress(caplog)[0].endswith("it and 10 more")
    assert runtime_messages(caplog)[-1] == "shutdown timed out after N s"
    assert not loop.timers()
    loop.close()


def test_a_hung_shutdown_ends_with_a_line_that_says_so(run: Run) -> None:
    outcome = run(
        """
        class Hanging(Service):
            async def start(self):
                pass

            async def stop(self, exception=None):
                await asyncio.Event().wait()

        with entrypoint(Hanging(), log_format="plain", shutdown_timeout=0.1):
            pass
        """
    )
    assert outcome.returncode == 70
    assert "shutdown timed out after" in outcome.stderr


def test_at_a_terminal_the_first_line_explains_that_another_interrupt_cuts_the_shutdown_short(
    loop_name: str,
) -> None:
    parent, child = pty.openpty()
    source = (
        "import os, signal\nfrom svcrun import entrypoint\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # it may be ignored here
        "with entrypoint(log_format='plain') as loop:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n    loop.run_forever()\n"
    )
    env = {**os.environ, "SVCRUN_USE_UVLOOP": "1" if loop_name == "uvloop" else "0"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", source],
            stdin=child,
            stdout=child,
            stderr=child,
            env=env,
            timeout=PATIENCE,
            check=False,
        )
        shown = os.read(parent, 65536).decode()
    finally:
        os.close(child)
        os.close(parent)
    assert done.returncode == 0
    assert "SIGINT received, shutting down; press Ctrl-C again to cut it short" in shown

"""Programs with an entrypoint in various situations, and their parts."""

import re
import textwrap
from collections.abc import Callable

from tests.support import PATIENCE, Outcome, Program

PRELUDE = '''\
import asyncio
import logging
import os
import signal
import sys
import threading
import time

import svcrun
from svcrun import Service, entrypoint
from svcrun.errors import *


def say(*words):
    print(*words, flush=True)


def send(signum=signal.{signal}):
    os.kill(os.getpid(), signum)


def send_later(delay, signum=signal.{signal}):
    # By another process: this one may be too busy to run a thread.
    os.system(f"(sleep {delay}; kill -{int(signum)} {os.getpid()}) &")


def run_async(main):
    factory = None
    if os.environ["SVCRUN_USE_UVLOOP"] == "1":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory, debug=False) as runner:
        return runner.run(main)


class Server(Service):
    """A service that prints its starts, stops and cancellations."""

    async def start(self):
        say("started")
        self.start_event.set()
        try:
            await asyncio.Event().wait()
        finally:
            say("cancelled")

    async def stop(self, exception=None):
        say("stopped", *([repr(exception)] if exception is not None else []))


'''


class Run:
    """Start programs on one kind of event loop."""

    def __init__(self, start: Callable[..., Program], loop_name: str) -> None:
        self._start = start
        self.loop_name = loop_name

    def start(
        self, source: str, *, signal: str = "SIGTERM", env: dict[str, str] | None = None
    ) -> Program:
        """Start the program `source`, which follows the prelude.

        :param signal: the signal that ``send()`` sends.
        """
        text = PRELUDE.replace("{signal}", signal) + textwrap.dedent(source)
        use_uvloop = str(int(self.loop_name == "uvloop"))
        return self._start(text, env={"SVCRUN_USE_UVLOOP": use_uvloop, **(env or {})})

    def __call__(
        self,
        source: str,
        *,
        signal: str = "SIGTERM",
        env: dict[str, str] | None = None,
        within: float = PATIENCE,
    ) -> Outcome:
        """Run a program to its end."""
        return self.start(source, signal=signal, env=env).wait(within=within)


def lines(outcome: Outcome) -> list[str]:
    """Return the output of the program."""
    return outcome.stdout.splitlines()


def complaints(outcome: Outcome) -> str:
    """Return the stderr of the program without the log of an orderly end."""
    expected = re.compile(
        r"INFO:svcrun\.entrypoint:SIG(TERM|INT) received, shutting down\n|WARNING:root:x\n"
        r"|WARNING:svcrun\.entrypoint:shutdown still in progress after .*\n"
        r"|INFO:svcrun\.entrypoint:shutdown completed in [\d.]+ s, all services have stopped\n"
    )
    return expected.sub("", outcome.stderr)

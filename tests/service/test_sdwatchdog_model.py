"""Random lives of an entrypoint under systemd: the messages follow the protocol (C45)."""

import asyncio
import contextlib
import socket
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies

from svcrun import Restart, Service, entrypoint
from svcrun.service.sdwatchdog import SDWatchdogService
from tests.service.managers import Manager, managed
from tests.support import examples

#: The messages that may follow each of them. None is the begin.
SUCCESSORS: dict[str | None, set[str]] = {
    None: {"READY", "STOPPING"},
    "READY": {"RELOADING", "STOPPING"},
    "RELOADING": {"READY", "STOPPING"},
    "STOPPING": set(),
}

EVENTS = ("reload", "broken reload", "crash", "add", "remove", "turn", "shut down")


class Actor(Service):
    """A service that does what its script says, and reports its steps to the manager."""

    address: str = ""
    starts: str = "returns"
    stops: str = "returns"
    crash: asyncio.Event
    is_broken: bool = False

    def say(self, word: str) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(word.encode(), self.address)

    async def start(self) -> None:
        self.crash = asyncio.Event()
        if self.starts in ("waits", "waits and runs on"):
            await asyncio.sleep(0)
        if self.starts == "fails":
            raise LookupError("start")
        self.say("STARTED")
        if self.starts == "waits and runs on":
            self.start_event.set()
            await self.crash.wait()
            raise LookupError("crash")

    async def reload(self) -> None:
        await asyncio.sleep(0)
        if self.is_broken:
            raise LookupError("reload")

    async def stop(self, exception: BaseException | None = None) -> None:
        self.say("STOPPED")
        if self.stops == "waits":
            await asyncio.sleep(0)
        if self.stops == "fails":
            raise LookupError("stop")


ACTORS = strategies.fixed_dictionaries(
    {
        "starts": strategies.sampled_from(
            ["returns", "waits", "waits and runs on", "waits and runs on", "fails"]
        ),
        "stops": strategies.sampled_from(["returns", "waits", "fails"]),
        "on_crash": strategies.sampled_from(["shutdown", "ignore", "restart"]),
    }
)


def make(address: str, script: dict[str, Any]) -> Actor:
    """Return the service of a script."""
    on_crash = Restart(delay=0) if script["on_crash"] == "restart" else script["on_crash"]
    return Actor(address=address, **{**script, "on_crash": on_crash})


async def live(manager: Manager, scripts: list[dict[str, Any]], events: list[str]) -> None:
    """Run an entrypoint through `events`."""
    actors = [make(manager.address, script) for script in scripts]
    async with entrypoint(SDWatchdogService(), *actors, log_config=False) as ep:
        for event in events:
            running = [one for one in ep.services if isinstance(one, Actor)]
            match event:
                case "reload" | "broken reload" if running:
                    running[-1].is_broken = event == "broken reload"
                    ep._running().reloading.request()
                case "crash" if running:
                    running[0].crash.set()
                case "add":
                    script = {"starts": "waits", "stops": "returns", "on_crash": "ignore"}
                    await ep.start_services(make(manager.address, script))
                case "remove" if running:
                    await ep.stop_services(running[0])
                case "shut down":
                    await ep.graceful_shutdown()
                    return
                case _:
                    await asyncio.sleep(0)


def check(messages: list[str], given: int) -> None:
    """Check the laws of a sequence of messages."""
    previous: str | None = None
    starts = 0
    for message in messages:
        name = message.partition("=")[0]
        if name == "STARTED":
            starts += 1
        if name == "STOPPED" and previous is None:
            raise AssertionError("a service was stopped before STOPPING=1")
        if name in SUCCESSORS:
            assert name in SUCCESSORS[previous], messages
            if previous is None and name == "READY":
                assert starts >= given, "READY=1 came before all services had started"
            previous = name
    assert previous == "STOPPING"


@pytest.mark.parametrize("_part", range(2))
def test_random_lives_follow_the_protocol(
    _part: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with managed(tmp_path, monkeypatch) as manager:

        @hypothesis.settings(max_examples=examples(100), deadline=None)
        @hypothesis.given(
            scripts=strategies.lists(ACTORS, max_size=3),
            events=strategies.lists(strategies.sampled_from(EVENTS), max_size=8),
        )
        def law(scripts: list[dict[str, Any]], events: list[str]) -> None:
            manager.clear()
            # Of a start, a stop, a crash; or the entrypoint shuts down already.
            with contextlib.suppress(LookupError, ExceptionGroup, SystemExit, RuntimeError):
                asyncio.run(live(manager, scripts, events))
            manager.wait_for("STOPPING=1")
            check(manager.sync(), len(scripts))

        law()

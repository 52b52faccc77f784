"""Laws of the reports to systemd (C45, C21a)."""

import asyncio
import contextlib
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from svcrun import Restart, Service, entrypoint
from svcrun.service import sdwatchdog
from svcrun.service.sdwatchdog import SDWatchdogService
from tests.service.managers import Manager, managed
from tests.support import PATIENCE, LoopFactory, Program, eventually, refuses


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    """A service manager that the environment names."""
    for name in ("WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)
    with managed(tmp_path, monkeypatch) as found:
        yield found


class Step(Service):
    """A service whose start and stop report to the manager themselves."""

    manager: Any = None
    start_takes: float = 0
    stop_takes: float = 0
    fails: bool = False

    async def start(self) -> None:
        self.say("start")
        await asyncio.sleep(self.start_takes)
        if self.fails:
            raise LookupError("no database")

    async def stop(self, exception: BaseException | None = None) -> None:
        self.say("stop")
        await asyncio.sleep(self.stop_takes)

    def say(self, word: str) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(f"STEP {word}".encode(), self.manager.address)


class Slow(Step):
    """A step with another name."""


def steps(manager: Manager) -> list[str]:
    """Return the phases and the steps of :class:`Step`, in their order."""
    wanted = ("STEP", "READY", "RELOADING", "STOPPING")
    return [m.partition("=")[0] for m in manager.messages if m.startswith(wanted)]


def run(loop_factory: LoopFactory, *services: Service, body: Any = None, **options: Any) -> None:
    """Run services in an entrypoint of their own loop."""

    async def nothing() -> None: ...

    with entrypoint(*services, loop_factory=loop_factory, **options) as loop:
        loop.run_until_complete((body or nothing)())


def test_ready_follows_the_last_start_and_stopping_precedes_the_first_stop(
    manager: Manager, loop_factory: LoopFactory, no_leaks: None
) -> None:
    run(loop_factory, Step(manager=manager), SDWatchdogService())
    manager.wait_for("STEP stop")
    assert steps(manager) == ["STEP start", "READY", "STOPPING", "STEP stop"]
    assert manager.messages[0] == f"MAINPID={os.getpid()}"
    statuses = [m for m in manager.messages if m.startswith("STATUS")]
    assert statuses == ["STATUS=starting, waiting for <Step NEW>", "STATUS=running"]


def test_an_entrypoint_can_be_used_again_and_the_variables_are_hidden_meanwhile(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "60000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    before = dict(os.environ)
    for count in (1, 2):
        with entrypoint(SDWatchdogService(), log_config=False):
            assert not os.environ.keys() & {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"}
            child = subprocess.run(["env"], capture_output=True, check=True, text=True)
            assert "NOTIFY" not in child.stdout
            assert "WATCHDOG" not in child.stdout
        manager.wait_for("STOPPING=1", count)
        assert dict(os.environ) == before


def test_a_failed_start_is_never_ready(manager: Manager, loop_factory: LoopFactory) -> None:
    with pytest.raises(LookupError):
        run(loop_factory, Step(manager=manager, fails=True), SDWatchdogService())
    manager.wait_for("STOPPING")
    assert "READY=1" not in manager.messages


def test_a_start_retried_is_ready_once(manager: Manager, loop_factory: LoopFactory) -> None:
    class Flaky(Step):
        async def start(self) -> None:
            self.fails, self.attempts = not hasattr(self, "attempts"), 1
            await super().start()

    retry = Restart(delay=0.01)
    run(loop_factory, Flaky(manager=manager, start_retry=retry), SDWatchdogService())
    manager.wait_for("STOPPING")
    assert manager.phases() == ["READY", "STOPPING"]


def test_restarts_and_services_at_run_time_change_no_phase(
    manager: Manager, loop_factory: LoopFactory
) -> None:
    async def body() -> None:
        ep = entrypoint.get_current()
        extra = Step(manager=manager)
        await ep.start_services(extra)
        await ep.stop_services(extra)

    run(loop_factory, SDWatchdogService(), body=body)
    manager.wait_for("STOPPING")
    assert steps(manager) == ["READY", "STEP start", "STEP stop", "STOPPING"]


def test_a_service_that_is_added_at_run_time_reports_readiness(
    manager: Manager, loop_factory: LoopFactory
) -> None:
    async def body() -> None:
        service = SDWatchdogService()
        await entrypoint.get_current().start_services(service)
        await asyncio.to_thread(manager.wait_for, "READY=1")
        await entrypoint.get_current().stop_services(service)
        assert "NOTIFY_SOCKET" in os.environ

    run(loop_factory, body=body)


def test_a_long_start_and_stop_extend_the_timeout_and_name_the_services(
    manager: Manager, loop_factory: LoopFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sdwatchdog, "TICK", 0.05)

    slow = Slow(manager=manager, start_takes=0.3, stop_takes=0.3)
    run(loop_factory, slow, Step(manager=manager), SDWatchdogService())
    manager.wait_for("STEP stop", 2)
    ready = manager.messages.index("READY=1")
    starting, stopping = manager.messages[:ready], manager.messages[ready:]
    assert "STATUS=starting, waiting for <Slow STARTING>" in starting
    for phase in (starting, stopping):
        assert 2 <= phase.count("EXTEND_TIMEOUT_USEC=15000000") <= 6
    status = [m for m in stopping if m.startswith("STATUS=stopping")]
    assert any("<Slow STOPPING>" in m and "Step.stop" in m for m in status), status


def test_a_start_without_progress_and_limit_does_not_extend_the_timeout_for_ever(
    manager: Manager, loop_factory: LoopFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sdwatchdog, "TICK", 0.02)
    monkeypatch.setattr(sdwatchdog, "STALL", 0.1)
    run(loop_factory, Step(manager=manager, start_takes=0.6), SDWatchdogService())
    ready = manager.messages.index(manager.wait_for("READY"))
    assert 1 <= manager.messages[:ready].count("EXTEND_TIMEOUT_USEC=15000000") <= 8


def test_signs_of_life_come_twice_in_an_interval_from_start_to_end(
    manager: Manager, loop_factory: LoopFactory
) -> None:
    run(
        loop_factory,
        SDWatchdogService(watchdog_interval=0.1),
        Step(manager=manager, start_takes=0.2, stop_takes=0.2),
        body=lambda: asyncio.sleep(0.2),
    )
    manager.wait_for("STEP stop")
    assert manager.messages.count("WATCHDOG_USEC=100000") == 1
    beats = [t for m, t in zip(manager.messages, manager.times, strict=True) if m == "WATCHDOG=1"]
    assert 6 <= len(beats) <= 14


def test_a_blocked_loop_shows_no_sign_of_life(manager: Manager, loop_factory: LoopFactory) -> None:
    async def block() -> None:
        await asyncio.to_thread(manager.wait_for, "WATCHDOG=1", 3)
        began.append(time.monotonic())
        time.sleep(0.5)  # noqa: ASYNC251 - it blocks the loop on purpose
        ended.append(time.monotonic())

    began: list[float] = []
    ended: list[float] = []
    run(loop_factory, SDWatchdogService(0.1), body=block)
    late = [
        t
        for m, t in zip(manager.messages, manager.times, strict=True)
        if m == "WATCHDOG=1" and began[0] + 0.1 < t < ended[0]
    ]
    assert not late


@pytest.mark.parametrize(
    ("usec", "pid", "interval"),
    [
        ("100000", "", 0.1),
        ("100000", "self", 0.1),
        ("100000", "1", None),
        ("", "", None),
        ("0", "", None),
        ("garbage", "", None),
    ],
)
def test_the_interval_is_that_of_the_unit_if_it_is_for_this_process(
    monkeypatch: pytest.MonkeyPatch, usec: str, pid: str, interval: float | None
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if pid == "self" else pid)
    assert SDWatchdogService().watchdog_interval == interval
    assert sdwatchdog._get_watchdog_interval() == interval


@pytest.mark.parametrize("interval", [0, -1, "1"])
def test_a_wrong_interval_is_refused(interval: Any) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        SDWatchdogService(watchdog_interval=interval)
    assert refuses(caught.value, f"watchdog_interval={interval!r}")


def test_outside_of_systemd_nothing_happens(
    monkeypatch: pytest.MonkeyPatch, loop_factory: LoopFactory, no_leaks: None
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    run(loop_factory, SDWatchdogService(), SDWatchdogService(watchdog_interval=0.01))


def test_an_abstract_socket_is_reached(
    monkeypatch: pytest.MonkeyPatch, loop_factory: LoopFactory
) -> None:
    with Manager(f"@svcrun-test-{os.getpid()}-{time.monotonic_ns()}") as manager:
        monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
        run(loop_factory, SDWatchdogService())
        manager.wait_for("STOPPING=1")


@pytest.mark.parametrize("address", ["/nonexistent/socket", "vsock:2:1234", "relative", "@"])
def test_a_socket_that_cannot_be_used_is_one_warning(
    address: str,
    monkeypatch: pytest.MonkeyPatch,
    loop_factory: LoopFactory,
    caplog: pytest.LogCaptureFixture,
    no_leaks: None,
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    run(loop_factory, SDWatchdogService(0.01), log_config=False, body=lambda: asyncio.sleep(0.05))
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert "could not notify systemd" in warnings[0].message


def test_a_full_socket_delays_the_phases_and_blocks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loop_factory: LoopFactory
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as full:
        full.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))

        async def body() -> None:
            received: list[bytes] = []
            full.setblocking(False)

            def read() -> bool:
                try:
                    while True:
                        received.append(full.recv(1000))
                except BlockingIOError:
                    return b"READY=1" in received

            await eventually(read)
            # The signs of life of the meantime are worth nothing by now.
            assert received.count(b"WATCHDOG=1") < 20

        class Filling(Service):
            async def start(self) -> None:
                with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
                    other.setblocking(False)
                    try:
                        while True:
                            other.sendto(b"noise", str(tmp_path / "notify"))
                    except BlockingIOError:
                        pass

        run(loop_factory, Filling(), SDWatchdogService(0.01), body=body)


@pytest.mark.parametrize("is_read", [True, False])
def test_at_the_end_the_last_phase_waits_for_a_full_socket_but_not_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loop_factory: LoopFactory, *, is_read: bool
) -> None:
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as full:
        full.bind(address)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        received: list[bytes] = []

        def read() -> None:
            time.sleep(0.1)  # the loop has ended by now, as a rule
            full.settimeout(PATIENCE)
            while not received or received[-1] != b"STOPPING=1":
                received.append(full.recv(1000))

        class Filling(Service):
            async def start(self) -> None: ...

            async def stop(self, exception: BaseException | None = None) -> None:
                reader.start()

        async def body() -> None:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
                other.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    while True:
                        other.sendto(b"noise", address)

        reader = threading.Thread(target=read if is_read else list)
        run(loop_factory, Filling(), SDWatchdogService(), body=body)
        reader.join()
        assert is_read is (b"STOPPING=1" in received)


@pytest.mark.skipif(shutil.which("systemd-notify") is None, reason="there is no systemd-notify")
def test_the_manager_of_the_tests_understands_systemd_notify(manager: Manager) -> None:
    """So the messages that the other tests expect are those of systemd."""
    subprocess.run(["systemd-notify", "--ready", "--status=up"], check=True)
    assert "READY=1" in manager.wait_for("READY=1").splitlines()


PROGRAM = """
import asyncio, os, signal, sys
from svcrun import Service, entrypoint
from svcrun.service.sdwatchdog import SDWatchdogService

class Work(Service):
    async def start(self):
        self.start_event.set()
        await asyncio.sleep(3600)

    async def reload(self):
        print("reloaded", flush=True)
        if "fail" in sys.argv:
            raise LookupError("bad configuration")

with entrypoint(Work(), SDWatchdogService()) as loop:
    print("running", flush=True)
    loop.run_forever()
"""


@pytest.mark.parametrize("argument", ["", "fail"])
def test_a_program_is_ready_reloads_on_sighup_and_stops_on_sigterm(
    manager: Manager, run_program: Callable[..., Program], argument: str
) -> None:
    program = run_program(PROGRAM, argument, env={"NOTIFY_SOCKET": manager.address})
    program.wait_for_line("running")
    assert manager.wait_for("MAINPID") == f"MAINPID={program.pid}"
    for count in (1, 2):
        program.send_signal(signal.SIGHUP)
        program.wait_for_line("reloaded")
        reloading = manager.wait_for("RELOADING", count)
        assert re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=\d+", reloading)
        assert abs(int(reloading.rpartition("=")[2]) / 1e6 - time.monotonic()) < 60
        manager.wait_for("READY", count + 1)
    program.terminate()
    outcome = program.wait()
    assert outcome.returncode == 0, outcome.stderr
    expected = ["READY", "RELOADING", "READY", "RELOADING", "READY", "STOPPING"]
    assert manager.phases() == expected
    assert ("bad configuration" in outcome.stderr) == bool(argument)

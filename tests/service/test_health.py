"""Laws of the health checks (C46, C47)."""

import asyncio
import contextlib
import functools
import gc
import inspect
import pickle
import signal
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import svcrun
from svcrun import Restart, Service, entrypoint
from svcrun._health.http import Request
from svcrun._health.probes import Probes, is_local
from svcrun.service.health import HealthService
from tests.service.health_client import Idle, ask, make, run_beside, wait_until
from tests.support import LoopFactory, Program, eventually, refuses


class Patient(Service):
    """A service whose health is set from outside."""

    error: BaseException | None = None
    api_key: str = ""
    checks = 0

    async def start(self) -> None: ...

    async def health(self) -> None:
        self.checks += 1
        if self.error is not None:
            raise self.error


@pytest.fixture
def run(loop_factory: LoopFactory) -> Callable[..., None]:
    return functools.partial(run_beside, loop_factory)


# Liveness.


def test_a_program_whose_loop_runs_is_alive(run: Any, no_leaks: None) -> None:
    health = make()

    def probe() -> None:
        assert ask(health, "/livez")[:2] == (200, "ok\n")
        assert ask(health, "/livez?verbose").data == {"status": "ok"}
        assert ask(health, "/livez", "HEAD")[:2] == (200, "")

    run(probe, health)


class Blocking(Service):
    """A service that blocks the loop until it is released."""

    release: Any = None

    async def start(self) -> None:
        self.start_event.set()
        await asyncio.sleep(0.05)
        self.block()

    def block(self) -> None:
        while not self.release.is_set():
            time.sleep(0.01)


def line_of_block() -> int:
    lines, first = inspect.getsourcelines(Blocking.block)
    return first + next(n for n, line in enumerate(lines) if "sleep" in line)


def test_a_blocked_loop_is_busy_first_and_hung_in_the_end(run: Any, no_leaks: None) -> None:
    blocking = Blocking(release=threading.Event(), name="nightly-import")
    health = make(hung_after=1.6)

    def probe() -> None:
        wait_until(lambda: ask(health, "/livez").text != "ok\n")
        busy = ask(health, "/livez")
        assert ask(health, "/readyz")[:2] == (200, "ready\n")  # the last value
        wait_until(lambda: ask(health, "/livez").status == 503)
        hung = ask(health, "/livez")
        not_ready = ask(health, "/readyz")
        data = ask(health, "/livez?verbose").data
        blocking.release.set()
        assert busy.status == 200
        assert busy.text.startswith("busy: event loop blocked for 1")
        assert " by nightly-import\n" in busy.text
        assert f'{__file__}", line {line_of_block()}, in block' in busy.text
        assert "in start" not in busy.text  # the last call only
        assert hung.text.startswith("hung: event loop blocked for 1.")
        assert "in start" in hung.text
        assert f"line {line_of_block()}, in block" in hung.text
        assert not_ready.status == 503
        assert "event loop blocked for" in not_ready.text
        assert data["status"] == "hung"
        assert data["service"] == "nightly-import"
        wait_until(lambda: ask(health, "/livez")[:2] == (200, "ok\n"))
        wait_until(lambda: ask(health, "/readyz")[:2] == (200, "ready\n"))

    run(probe, blocking, health)


SUSPENDED = """
from svcrun import entrypoint
from svcrun.service.health import HealthService

health = HealthService(port=0, hung_after=0.6)
with entrypoint(health, log_config=False) as loop:
    print(health.port, flush=True)
    loop.run_forever()
"""


def test_a_process_that_was_suspended_is_not_hung(run_program: Callable[..., Program]) -> None:
    program = run_program(SUSPENDED)
    port = int(program.wait_for_line(r"\d+")[0])
    assert ask(port, "/livez").status == 200
    program.send_signal(signal.SIGSTOP)
    time.sleep(2)  # the length of the suspension, more than hung_after
    program.send_signal(signal.SIGCONT)
    for _ in range(100):
        assert ask(port, "/livez").status == 200
    program.terminate()
    assert program.wait().returncode == 0


# Readiness.


def test_a_program_is_ready_when_the_last_service_has_started(run: Any) -> None:
    health = make()
    answers = []

    class Slow(Service):
        async def start(self) -> None:
            answers.append(await asyncio.to_thread(ask, health, "/readyz"))

        async def stop(self, exception: BaseException | None = None) -> None:
            answers.append(await asyncio.to_thread(ask, health, "/readyz"))
            answers.append(await asyncio.to_thread(ask, health, "/livez"))

    run(lambda: answers.append(ask(health, "/readyz")), Slow(name="slow"), health)
    assert [answer.status for answer in answers] == [503, 200, 503, 200]
    assert "slow: starting" in answers[0].text
    assert "slow: stopping" in answers[2].text


def test_the_port_is_open_before_the_first_start_and_after_the_last_stop(run: Any) -> None:
    health = make()
    seen: list[Any] = []

    class First(Service):
        async def start(self) -> None:
            seen.append(health.port)
            socket.create_connection(("127.0.0.1", health.port)).close()

        async def stop(self, exception: BaseException | None = None) -> None:
            await asyncio.sleep(0.05)  # the other services have stopped
            seen.append(health.port)
            socket.create_connection(("127.0.0.1", health.port)).close()

    run(lambda: None, First(), health)
    assert seen[0] == seen[1] > 0
    assert health.port == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", seen[0]))


def test_a_service_that_is_not_healthy_makes_the_program_not_ready(
    run: Any, no_leaks: None
) -> None:
    patient, health = Patient(name="database"), make()

    def probe() -> None:
        wait_until(lambda: ask(health, "/readyz").status == 200)
        patient.error = ConnectionError("no route")
        wait_until(lambda: ask(health, "/readyz").status == 503)
        answer = ask(health, "/readyz")
        assert answer.text == "database: unhealthy (ConnectionError: no route)\n"
        data = ask(health, "/readyz?verbose").data
        assert data["status"] == "not ready"
        assert data["services"] == {"database": "running", "health": "running"}
        assert ask(health, "/livez").status == 200  # liveness asks no other system
        patient.error = None
        wait_until(lambda: ask(health, "/readyz").status == 200)

    run(probe, patient, health)


def test_the_first_check_comes_at_once_and_the_next_ones_each_interval(run: Any) -> None:
    patient, health = Patient(), make(check_interval=3600)

    def probe() -> None:
        wait_until(lambda: ask(health, "/readyz").status == 200)
        assert patient.checks in (1, 2)

    run(probe, patient, health)


def test_a_check_that_hangs_fails_after_its_time_limit_and_is_not_repeated(
    run: Any, no_leaks: None
) -> None:
    calls = []

    class Hanging(Idle):
        async def health(self) -> None:
            calls.append(self)
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(3600)
            await asyncio.sleep(0.3)  # ignores the cancellation for a while

    health = make(check_timeout=0.02)

    def probe() -> None:
        wait_until(lambda: "took longer than 0.02 s" in ask(health, "/readyz").text)
        assert len(calls) == 1
        wait_until(lambda: len(calls) > 1)

    run(probe, Hanging(), health)


def test_a_check_that_is_cancelled_from_outside_is_not_healthy(run: Any) -> None:
    health = make()
    run(
        lambda: wait_until(lambda: "was cancelled" in ask(health, "/readyz").text),
        Patient(error=asyncio.CancelledError()),
        health,
    )


def test_a_name_that_a_class_uses_otherwise_is_left_alone(run: Any) -> None:
    class Game(Idle):
        health = 100

    class Doctor(Idle):
        async def health(self, patient: str) -> str:
            return patient

    class Sync(Idle):
        def health(self) -> None:
            raise LookupError

    health = make()
    run(
        lambda: wait_until(lambda: ask(health, "/readyz").status == 200),
        Game(),
        Doctor(),
        Sync(),
        health,
    )


def test_a_check_runs_on_behalf_of_its_service(run: Any) -> None:
    found = []

    class Asking(Idle):
        async def health(self) -> None:
            found.append(svcrun.current_service.get())

    asking, health = Asking(), make()
    run(lambda: wait_until(lambda: found), asking, health)
    assert found[0] is asking


class Crashing(Service):
    """A service that crashes when it is told to."""

    runs = 0

    async def start(self) -> None:
        self.runs += 1
        self.crash = asyncio.Event()
        self.start_event.set()
        await self.crash.wait()
        raise LookupError("broken")


def test_a_service_that_crashed_and_is_ignored_is_shown_and_does_not_count(run: Any) -> None:
    crashing, health = Crashing(on_crash="ignore"), make()

    def probe() -> None:
        crashing.loop.call_soon_threadsafe(crashing.crash.set)
        wait_until(lambda: ask(health, "/readyz?verbose").data["services"]["Crashing"] == "failed")
        assert ask(health, "/readyz")[:2] == (200, "ready\n")

    run(probe, crashing, health)


def test_a_service_that_restarts_makes_the_program_not_ready_until_it_runs(run: Any) -> None:
    crashing, health = Crashing(on_crash=Restart(delay=0.3, jitter=0)), make()

    def probe() -> None:
        assert ask(health, "/readyz").status == 200
        crashing.loop.call_soon_threadsafe(crashing.crash.set)
        wait_until(lambda: "Crashing: restarting\n" in ask(health, "/readyz").text)
        wait_until(lambda: ask(health, "/readyz").status == 200)
        assert crashing.runs == 2

    run(probe, crashing, health)


async def test_a_service_that_was_stopped_for_good_is_shown_and_does_not_count() -> None:
    health, extra = make(), Patient(name="extra", error=LookupError("ill"))
    async with entrypoint(health, log_config=False) as ep:
        await ep.start_services(extra)
        assert (await asyncio.to_thread(ask, health, "/readyz")).status == 503
        await ep.stop_services(extra)
        answer = await asyncio.to_thread(ask, health, "/readyz?verbose")
        assert answer.status == 200
        assert answer.data["services"] == {"health": "running", "extra": "stopped"}
        remember = weakref.ref(extra)
        del extra

        def is_gone() -> bool:
            gc.collect()
            return remember() is None

        await eventually(is_gone)  # a last check may have been in progress
        answer = await asyncio.to_thread(ask, health, "/readyz?verbose")
        assert answer.data["services"] == {"health": "running"}


class Equal(Idle):
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Equal)

    __hash__ = None  # type: ignore[assignment]

    async def health(self) -> None: ...


def test_services_of_the_same_name_have_numbers(run: Any) -> None:
    health = make()

    def probe() -> None:
        wait_until(lambda: ask(health, "/readyz").status == 200)
        names = list(ask(health, "/readyz?verbose").data["services"])
        assert names == ["Equal", "Equal#2", "it", "it#2", "health"]

    run(probe, Equal(), Equal(), Idle(name="it"), Idle(name="it"), health)


DRAINING = """
import asyncio
from svcrun import Service, entrypoint
from svcrun.service.health import HealthService

class Busy(Service):
    async def start(self):
        self.start_event.set()
        while True:
            sum(range(20_000))
            await asyncio.sleep(0)

health = HealthService(port=0)
with entrypoint(Busy(), health, drain_delay=1, log_config=False) as loop:
    print(health.port, flush=True)
    loop.run_forever()
"""


def test_readiness_ends_with_the_signal_and_liveness_goes_on(
    run_program: Callable[..., Program],
) -> None:
    program = run_program(DRAINING)
    port = int(program.wait_for_line(r"\d+")[0])
    assert ask(port, "/readyz")[:2] == (200, "ready\n")
    program.terminate()
    wait_until(lambda: ask(port, "/readyz").status == 503)
    assert ask(port, "/readyz").text == "starting or shutting down\n"
    assert ask(port, "/livez").status == 200
    assert program.wait().returncode == 0


# Clients beyond loopback.


@pytest.mark.parametrize(
    ("peer", "local"),
    [
        (("127.0.0.1", 1), True),
        (("127.8.8.8", 1), True),
        (("::1", 1, 0, 0), True),
        (("::ffff:127.0.0.1", 1, 0, 0), True),
        ("", True),
        (("192.0.2.1", 1), False),
        (("::ffff:192.0.2.1", 1, 0, 0), False),
        (("fe80::1%eth0", 1, 0, 2), False),
    ],
)
def test_peers_of_loopback_and_of_unix_sockets_are_local(peer: object, local: bool) -> None:
    assert is_local(peer) is local


@pytest.mark.parametrize("expose", [False, True])
def test_other_clients_see_names_and_states_unless_all_is_exposed(
    run: Any, monkeypatch: pytest.MonkeyPatch, expose: bool
) -> None:
    blocking = Blocking(release=threading.Event(), name="importer")
    patient = Patient(name="database", error=LookupError("secret.example.org"))
    health = make(hung_after=1.2, expose=expose)
    responses: list[Any] = []

    def respond(self: Probes, request: Request, _: object) -> Any:
        responses.append(respond_to(self, request, ("192.0.2.1", 1)))
        return responses[-1]

    respond_to = Probes.respond
    monkeypatch.setattr(Probes, "respond", respond)

    def probe() -> None:
        wait_until(lambda: "database: unhealthy" in ask(health, "/readyz").text)
        wait_until(lambda: ask(health, "/livez").status == 503)
        ask(health, "/livez?verbose")
        ask(health, "/readyz?verbose")
        blocking.release.set()

    run(probe, patient, blocking, health)
    text = "".join(str(response.body) for response in responses)
    assert "importer" in text
    assert ("secret.example.org" in text) is expose
    assert (__file__ in text) is expose
    assert ("in block" in text) is expose


def test_an_error_of_a_check_is_shown_without_secrets(run: Any) -> None:
    error = ConnectionError("redis://joe:hunter2@cache refused 'swordfish'")
    patient = Patient(name="cache", error=error, api_key="swordfish")
    health = make()

    def probe() -> None:
        wait_until(lambda: "refused" in ask(health, "/readyz").text)
        shown = "ConnectionError: redis://***@cache refused '***'"
        assert ask(health, "/readyz").text == f"cache: unhealthy ({shown})\n"

    run(probe, patient, health)


def test_another_path_is_not_found(run: Any) -> None:
    health = make()
    run(lambda: pytest.fail("found") if ask(health, "/metrics/").status != 404 else None, health)


# The service.


def test_an_address_in_use_fails_the_start_and_names_it(loop_factory: LoopFactory) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        stopped = []

        class Other(Idle):
            async def stop(self, exception: BaseException | None = None) -> None:
                stopped.append(self)

        with (
            pytest.raises(OSError, match=rf"HealthService name='health'.*127.0.0.1:{port}"),
            entrypoint(Other(), make(port=port), loop_factory=loop_factory, log_config=False),
        ):
            pytest.fail("started")
        assert stopped


def test_without_a_thread_the_start_fails_and_leaves_nothing(
    loop_factory: LoopFactory, monkeypatch: pytest.MonkeyPatch, no_leaks: None
) -> None:
    original = threading.Thread.start

    def start(self: threading.Thread) -> None:
        if self.name == "health":
            raise RuntimeError("can't start new thread")
        original(self)

    monkeypatch.setattr(threading.Thread, "start", start)
    with (
        pytest.raises(RuntimeError, match="can't start new thread"),
        entrypoint(make(), loop_factory=loop_factory, log_config=False),
    ):
        pytest.fail("started")


async def test_it_can_be_started_and_stopped_while_the_entrypoint_runs(no_leaks: None) -> None:
    health = make()
    async with entrypoint(Idle(name="first"), log_config=False) as ep:
        for _ in range(20):
            await ep.start_services(health)
            port = health.port
            answer = await asyncio.to_thread(ask, health, "/readyz?verbose")
            assert answer.status == 200
            assert answer.data["services"] == {"first": "running", "health": "running"}
            await ep.stop_services(health)
            with pytest.raises(ConnectionRefusedError):
                await asyncio.to_thread(ask, port, "/livez")
        await ep.start_services(health)
    assert health.port == 0


def test_an_entrypoint_can_be_left_and_another_one_entered(run: Any, no_leaks: None) -> None:
    health = make()
    for _ in range(20):
        run(lambda: wait_until(lambda: ask(health, "/readyz").status == 200), Patient(), health)


async def test_it_does_not_start_outside_of_an_entrypoint() -> None:
    with pytest.raises(RuntimeError, match="works only in an entrypoint"):
        await make().start()


def test_a_unix_socket_is_answered_and_removed(run: Any, tmp_path: Any) -> None:
    path = tmp_path / "health"
    health = HealthService(path=path)

    def probe() -> None:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(path))
            sock.sendall(b"GET /livez HTTP/1.0\r\n\r\n")
            assert b"".join(iter(functools.partial(sock.recv, 1024), b"")).endswith(b"ok\n")

    run(probe, health)
    assert not path.exists()


@pytest.mark.parametrize(
    "keywords",
    [{"hung_after": 0}, {"check_interval": -1}, {"check_timeout": "1"}, {"port": 70_000}],
)
def test_a_wrong_value_is_refused_with_its_name(keywords: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        HealthService(**keywords)
    ((name, value),) = keywords.items()
    assert refuses(caught.value, f"{name}={value!r}")


def test_it_can_be_pickled_and_shown() -> None:
    health = pickle.loads(pickle.dumps(HealthService(port=9000, expose=True)))  # noqa: S301
    assert (health.address, health.port, health.expose) == ("127.0.0.1", 9000, True)
    assert repr(health) == "<HealthService name='health' NEW>"


@pytest.fixture(autouse=True)
def _no_warning_of_a_blocked_loop(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Leave no record of asyncio's debug mode about blocked loops to other tests."""
    yield
    caplog.clear()

"""SIGHUP, or the program, makes services reload (C45a)."""

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from svcrun import Service, entrypoint
from svcrun.service import TCPServer
from svcrun.service.tls import TLSServer
from tests.conftest import Certificates
from tests.support import LoopFactory, Program, eventually

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="there is no SIGHUP")


@pytest.fixture(autouse=True)
def default_action() -> Iterator[None]:
    """Give SIGHUP its default action; a run under ``nohup`` has a handler for it."""
    previous = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, previous)


class Reloading(Service):
    """A service that records its reloads."""

    calls: list[Any]
    use: Any = None

    async def start(self) -> None: ...

    async def reload(self) -> None:
        self.calls.append(self)
        if self.use is not None:
            await self.use()


def run(loop_factory: LoopFactory, body: Any, *services: Service) -> None:
    """Run `body` in an entrypoint."""
    with entrypoint(*services, loop_factory=loop_factory, log_config=False) as loop:
        loop.run_until_complete(body())


def hang_up() -> None:
    """Send SIGHUP to this process."""
    os.kill(os.getpid(), signal.SIGHUP)


def test_sighup_reloads_the_running_services_dependencies_first(
    loop_factory: LoopFactory, no_leaks: None
) -> None:
    calls: list[Any] = []
    first, second, third = (Reloading(calls=calls) for _ in range(3))
    first.depends_on = second
    second.depends_on = third
    stopped = Reloading(calls=calls)

    async def body() -> None:
        await entrypoint.get_current().stop_services(stopped)
        hang_up()
        await eventually(lambda: len(calls) == 3)

    run(loop_factory, body, first, second, third, stopped)
    assert calls == [third, second, first]


def test_a_signal_before_the_loop_runs_is_not_lost(loop_factory: LoopFactory) -> None:
    calls: list[Any] = []
    with entrypoint(Reloading(calls=calls), loop_factory=loop_factory, log_config=False) as loop:
        hang_up()
        loop.run_until_complete(eventually(lambda: calls))


def test_a_reload_that_fails_is_logged_and_the_others_go_on(
    loop_factory: LoopFactory, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[Any] = []

    async def fail() -> None:
        raise LookupError("bad configuration")

    async def body() -> None:
        hang_up()
        await eventually(lambda: len(calls) == 2)
        with pytest.raises(LookupError, match="bad configuration"):
            await entrypoint.get_current().reload()
        assert len(calls) == 4

    run(loop_factory, body, Reloading(calls=calls, use=fail), Reloading(calls=calls))
    failures = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(failures) == 2
    assert "Reloading RUNNING> failed to reload" in failures[0].message
    assert failures[0].exc_info is not None


def test_several_errors_of_a_reload_are_raised_as_a_group(loop_factory: LoopFactory) -> None:
    async def fail() -> None:
        raise LookupError

    async def body() -> None:
        with pytest.raises(ExceptionGroup) as caught:
            await entrypoint.get_current().reload()
        assert len(caught.value.exceptions) == 2

    run(loop_factory, body, *(Reloading(calls=[], use=fail) for _ in range(2)))


def test_signals_during_a_reload_make_one_more_round(loop_factory: LoopFactory) -> None:
    calls: list[Any] = []
    most = running = 0

    async def wait() -> None:
        nonlocal most, running
        running += 1
        most = max(most, running)
        if len(calls) == 1:
            for _ in range(5):
                hang_up()
                await asyncio.sleep(0.01)
        running -= 1

    async def body() -> None:
        hang_up()
        await eventually(lambda: len(calls) == 2)
        await asyncio.sleep(0.05)

    run(loop_factory, body, Reloading(calls=calls, use=wait))
    assert (len(calls), most) == (2, 1)


def test_a_signal_during_the_start_is_served_after_it(loop_factory: LoopFactory) -> None:
    calls: list[Any] = []

    class Slow(Reloading):
        async def start(self) -> None:
            hang_up()
            await asyncio.sleep(0.05)
            assert not calls

    async def body() -> None:
        await eventually(lambda: calls)

    run(loop_factory, body, Slow(calls=calls))


def test_a_signal_during_the_stop_is_ignored(loop_factory: LoopFactory) -> None:
    calls: list[Any] = []

    class Slow(Reloading):
        async def stop(self, exception: BaseException | None = None) -> None:
            hang_up()
            await asyncio.sleep(0.05)

    async def body() -> None: ...

    run(loop_factory, body, Slow(calls=calls))
    assert not calls


def test_a_reload_that_hangs_does_not_hold_the_shutdown(loop_factory: LoopFactory) -> None:
    calls: list[Any] = []

    async def body() -> None:
        hang_up()
        await eventually(lambda: calls)

    async def hang() -> None:
        await asyncio.Event().wait()

    run(loop_factory, body, Reloading(calls=calls, use=hang))


def test_a_reload_may_shut_the_entrypoint_down(loop_factory: LoopFactory) -> None:
    async def shut_down() -> None:
        await entrypoint.get_current().graceful_shutdown()

    async def main() -> None:
        async with asyncio.timeout(20), entrypoint(Reloading(calls=[], use=shut_down)) as ep:
            hang_up()
            await ep.closing()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())


def test_a_service_added_at_run_time_is_reloaded(loop_factory: LoopFactory) -> None:
    calls: list[Any] = []

    async def body() -> None:
        await entrypoint.get_current().start_services(Reloading(calls=calls))
        hang_up()
        await eventually(lambda: calls)

    run(loop_factory, body)


def test_tls_servers_read_their_certificates_again(
    loop_factory: LoopFactory, certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    class Secure(TLSServer):
        async def handle_client(self, reader: Any, writer: Any) -> None: ...

    service = Secure("127.0.0.1", 0, cert=certificates.server_cert, key=certificates.server_key)

    async def body() -> None:
        before = service.ssl_context
        hang_up()
        await eventually(lambda: service.ssl_context is not before)

    run(loop_factory, body, service)


@pytest.mark.parametrize("previous", [signal.SIG_DFL, signal.SIG_IGN])
def test_the_disposition_of_sighup_is_restored(
    loop_factory: LoopFactory, previous: signal.Handlers
) -> None:
    original = signal.signal(signal.SIGHUP, previous)
    try:

        async def body() -> None:
            assert signal.getsignal(signal.SIGHUP) is not previous

        run(loop_factory, body, Reloading(calls=[]))
        assert signal.getsignal(signal.SIGHUP) is previous
    finally:
        signal.signal(signal.SIGHUP, original)


def test_sighup_keeps_its_disposition_without_a_reload(loop_factory: LoopFactory) -> None:
    class Other(TCPServer):
        reload = 5

        async def handle_client(self, reader: Any, writer: Any) -> None: ...

    previous = signal.getsignal(signal.SIGHUP)

    async def body() -> None:
        assert signal.getsignal(signal.SIGHUP) is previous

    run(loop_factory, body, Other("127.0.0.1", 0))


def test_a_handler_of_the_program_keeps_sighup(loop_factory: LoopFactory) -> None:
    calls: list[Any] = []
    heard: list[int] = []
    original = signal.signal(signal.SIGHUP, lambda number, _: heard.append(number))
    try:

        async def body() -> None:
            hang_up()
            await asyncio.sleep(0.05)
            assert (heard, calls) == ([signal.SIGHUP], [])
            await entrypoint.get_current().reload()
            assert len(calls) == 1

        run(loop_factory, body, Reloading(calls=calls))
    finally:
        signal.signal(signal.SIGHUP, original)


@pytest.mark.parametrize("kind", ["with an argument", "with a default", "plain"])
def test_another_method_of_that_name_is_left_alone(
    loop_factory: LoopFactory, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    class Argument(Service):
        async def start(self) -> None: ...

        async def reload(self, path: str) -> None:
            raise AssertionError

    class Default(Service):
        async def start(self) -> None: ...

        async def reload(self, path: str = "") -> None:
            raise AssertionError

    class Plain(Service):
        async def start(self) -> None: ...

        def reload(self) -> None:
            raise AssertionError

    cls: Any = {"with an argument": Argument, "with a default": Default, "plain": Plain}[kind]

    async def body() -> None:
        await entrypoint.get_current().reload()

    run(loop_factory, body, cls())
    assert "reload is not a coroutine method without parameters" in caplog.text


def test_a_forked_child_leaves_sighup_to_itself(run_program: Callable[..., Program]) -> None:
    program = run_program(
        """
import os, signal, time
from svcrun import Service, entrypoint

class Work(Service):
    async def start(self): ...
    async def reload(self):
        print("reloaded in", "parent" if os.getpid() == parent else "child", flush=True)

parent = os.getpid()
with entrypoint(Work()) as loop:
    child = os.fork()
    if not child:
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(60)
    print(os.waitpid(child, 0)[1] == signal.SIGHUP)
    loop.call_later(0.1, loop.stop)
    loop.run_forever()
""",
        options=(),
        measured=False,
    )
    outcome = program.wait()
    assert outcome.stdout == "True\n", outcome.stderr
    assert outcome.returncode == 0

"""Laws of services that run in processes of their own (C44)."""

import asyncio
import contextlib
import errno
import logging
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from svcrun import Restart, ServiceState, entrypoint
from svcrun.errors import ProcessEnded
from svcrun.service.process import ProcessService, RespawningProcessService
from tests.service.process_tools import SPAWNING, is_alive, no_new_children, wait_until_gone
from tests.service.processes import Again, AtImport, Bomb, Work
from tests.support import PATIENCE, LoopFactory, Program, eventually, refuses


@pytest.fixture(autouse=True)
def info(caplog: pytest.LogCaptureFixture) -> None:
    """Record the lines of level info."""
    caplog.set_level(logging.INFO)


@pytest.fixture
def run(loop_factory: LoopFactory) -> Callable[[Any], Any]:
    """Run a coroutine on each kind of loop."""

    def run_main(main: Any) -> Any:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            return runner.run(main)

    return run_main


def count_descriptors() -> int:
    """Return the number of open descriptors of this process."""
    return len(list(Path("/proc/self/fd").iterdir()))


def test_the_process_runs_from_start_to_stop_and_cleans_up_at_sigterm(
    run: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        service = Work(folder=tmp_path)
        async with entrypoint(service, log_config=False):
            assert service.state is ServiceState.RUNNING
            assert service.process is not None
            pid = service.process.pid or 0
            await eventually(lambda: f"hello from {pid}" in caplog.text)
        assert (tmp_path / "finally").exists()
        assert not is_alive(pid)
        assert service.process is None
        assert service.process_stop_event.is_set()

    with no_new_children():
        run(main())
    assert "ended with exit code 143" in caplog.text


def test_a_stop_right_after_the_start_lets_the_function_reach_its_try(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    async def main() -> None:
        async with entrypoint(Work(folder=tmp_path), log_config=False):
            pass

    run(main())
    assert (tmp_path / "finally").exists()


@pytest.mark.parametrize(
    ("what", "code"), [("end", 7), ("give_back", 0), ("fail", 1), ("die", -signal.SIGKILL)]
)
def test_the_end_of_the_process_is_a_crash_with_any_exit_code(
    run: Callable[..., Any], what: str, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with entrypoint(Work(what=what), log_config=False):
            await asyncio.sleep(PATIENCE)

    with no_new_children(), pytest.raises(ProcessEnded) as caught:
        run(main())
    assert caught.value.code == code
    described = "signal SIGKILL" if code < 0 else f"exit code {code}"
    assert described in str(caught.value)
    assert ("no such thing" in caplog.text) == (what == "fail")
    assert ("last words" in caplog.text) == (what == "die")


def test_a_killed_process_is_noticed_without_polling(run: Callable[..., Any]) -> None:
    async def main() -> None:
        service = Work(on_crash="ignore")
        async with entrypoint(service, log_config=False):
            assert service.process is not None
            os.kill(service.process.pid or 0, signal.SIGKILL)
            async with asyncio.timeout(10):
                await eventually(lambda: service.state is ServiceState.FAILED)

    run(main())


def test_records_have_level_name_traceback_and_service(
    run: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        with contextlib.suppress(ProcessEnded):
            async with entrypoint(Work(what="fail", name="first"), log_config=False):
                await asyncio.sleep(PATIENCE)

    run(main())
    (greeting,) = (record for record in caplog.records if record.name == "tests.work")
    assert (greeting.levelname, greeting.processName) == ("WARNING", "first")
    assert greeting.process == int(greeting.message.rpartition(" ")[2])
    (failure,) = (r for r in caplog.records if "in_process() raised" in r.message)
    assert "LookupError: no such thing" in (failure.exc_text or "")


def test_a_process_that_dies_before_it_is_ready_fails_the_start_with_the_cause(
    run: Callable[..., Any], capfd: pytest.CaptureFixture[str]
) -> None:
    async def main() -> None:
        async with entrypoint(AtImport(argument=Bomb()), log_config=False):
            raise AssertionError

    cause = "exit code 1 before it was ready: LookupError: dead at import"
    with no_new_children(), pytest.raises(ProcessEnded, match=cause):
        run(main())
    assert "Traceback" in capfd.readouterr().err


def test_an_error_of_get_process_kwargs_fails_the_start(run: Callable[..., Any]) -> None:
    class Wrong(Work):
        def get_process_kwargs(self) -> dict[str, Any]:
            raise LookupError("no arguments")

    async def main() -> None:
        async with entrypoint(Wrong(), log_config=False):
            raise AssertionError

    with no_new_children(), pytest.raises(LookupError, match="no arguments"):
        run(main())


def test_an_argument_that_cannot_be_pickled_fails_the_start(run: Callable[..., Any]) -> None:
    async def main() -> None:
        async with entrypoint(AtImport(argument=lambda: None), log_config=False):
            raise AssertionError

    with no_new_children(), pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
        run(main())


def test_a_process_that_ignores_sigterm_is_killed_in_time(
    run: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        service = Work(what="ignore_sigterm", process_stop_timeout=0.1)
        async with asyncio.timeout(PATIENCE), entrypoint(service, log_config=False):
            await eventually(lambda: "ignoring" in caplog.text)

    with no_new_children():
        run(main())
    assert "process_stop_timeout=0.1 s; killing it" in caplog.text
    assert "ended with signal SIGKILL" in caplog.text


def test_forked_processes_end_with_the_process(
    run: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> int:
        async with entrypoint(Work(what="fork_on"), log_config=False):
            await eventually(lambda: "forked" in caplog.text)
        return next(int(m.split()[1]) for m in caplog.messages if m.startswith("forked"))

    wait_until_gone(run(main()))


def test_a_flood_of_records_arrives_whole_and_in_order(
    run: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with entrypoint(Work(what="flood"), log_config=False):
            await eventually(lambda: "flooded" in caplog.messages)

    run(main())
    numbers = [int(m.partition(" ")[2]) for m in caplog.messages if m.startswith("line ")]
    assert numbers == list(range(20_000))


def test_garbage_in_the_pipe_is_dropped(
    run: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with entrypoint(Work(what="garbage"), log_config=False):
            await eventually(lambda: "after the garbage" in caplog.messages)

    run(main())
    assert "is no record" in caplog.text


def test_a_process_may_run_an_entrypoint_of_its_own(
    run: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with entrypoint(Work(what="run_entrypoint"), log_config=False):
            await eventually(lambda: "inner" in caplog.messages)

    run(main())
    assert "left in order" in caplog.messages
    assert "ended with exit code 0" in caplog.text


def test_a_process_that_has_left_the_group_can_not_delay_the_end_by_its_output(
    run: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with asyncio.timeout(PATIENCE):
            async with entrypoint(Work(what="write_without_end"), log_config=False):
                await asyncio.sleep(PATIENCE * 2)

    with pytest.raises(ProcessEnded, match="exit code 7"):
        run(main())
    for message in caplog.messages:
        if message.startswith("forked"):
            wait_until_gone(int(message.split()[1]))  # the pipe is closed


def test_the_log_setting_of_the_process_is_not_inherited(
    run: Callable[..., Any], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a setting for the program has no effect on the log of its processes."""
    monkeypatch.setenv("SVCRUN_LOG_CONFIG", "1")

    async def main() -> None:
        shows, runs = Work(what="show_environment"), Work(what="run_entrypoint")
        async with entrypoint(shows, runs, log_config=False):
            await eventually(lambda: "variables ['SVCRUN_LOG_CONFIG']" in caplog.messages)
            await eventually(lambda: "inner" in caplog.messages)

    run(main())
    monkeypatch.delenv("SVCRUN_LOG_CONFIG")
    caplog.clear()

    async def without() -> None:
        async with entrypoint(Work(what="show_environment"), log_config=False):
            await eventually(lambda: "variables []" in caplog.messages)

    run(without())


def test_a_process_that_multiprocessing_has_waited_for_keeps_its_code(
    run: Callable[..., Any],
) -> None:
    async def main() -> None:
        service = Work()
        async with entrypoint(service, log_config=False):
            assert service.process is not None
            os.kill(service.process.pid or 0, signal.SIGKILL)
            while service.process in multiprocessing.active_children():
                time.sleep(0.01)  # noqa: ASYNC251 - the loop must not notice the end before
            await asyncio.sleep(PATIENCE)

    with no_new_children(), pytest.raises(ProcessEnded, match="SIGKILL"):
        run(main())


def test_other_processes_of_the_program_are_left_alone(run: Callable[..., Any]) -> None:
    async def main() -> None:
        code = "import time; print(1, flush=True); time.sleep(60)"
        other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)  # noqa: ASYNC220
        assert other.stdout is not None
        other.stdout.readline()
        async with entrypoint(Work(), log_config=False):
            await asyncio.sleep(0)
        assert other.poll() is None
        other.send_signal(signal.SIGUSR1)
        assert other.wait() == -signal.SIGUSR1
        other.stdout.close()

    with no_new_children():
        run(main())


@pytest.mark.parametrize("by", ["python", "kernel"])
def test_without_pidfd_the_end_of_a_process_is_noticed(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    def refuse(*_: int) -> int:
        raise OSError(errno.ENOSYS, "Function not implemented")

    if by == "python":
        monkeypatch.delattr(os, "pidfd_open")
    else:
        monkeypatch.setattr(os, "pidfd_open", refuse)

    async def main() -> None:
        service = Work(on_crash="ignore")
        async with entrypoint(service, log_config=False):
            assert service.process is not None
            os.kill(service.process.pid or 0, signal.SIGKILL)
            await eventually(lambda: service.state is ServiceState.FAILED)
        async with entrypoint(service, log_config=False):
            pass
        assert service.state is ServiceState.STOPPED

    with no_new_children():
        run(main())


def test_a_process_that_other_code_has_waited_for_is_a_crash(run: Callable[..., Any]) -> None:
    async def main() -> None:
        service = Work()
        async with entrypoint(service, log_config=False):
            assert service.process is not None
            pid = service.process.pid or 0
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)  # noqa: ASYNC222 - it ends at once
            await asyncio.sleep(PATIENCE)

    with no_new_children(), pytest.raises(ProcessEnded, match="unknown exit code"):
        run(main())


def test_no_descriptor_for_a_process_fails_the_start(run_program: Callable[..., Program]) -> None:
    program = run_program(
        """
import asyncio, os, resource
from svcrun import entrypoint
from tests.service.processes import Work

async def main():
    async with entrypoint(log_config=False) as ep:
        service = Work()
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        held = []
        try:
            while True:
                held.append(os.dup(0))
        except OSError:
            pass
        try:
            await ep.start_services(service)
        except OSError as error:
            print(error)
        print(service.process_stop_event.is_set())
        for descriptor in held:
            os.close(descriptor)
        await ep.start_services(service)
        print(service.state.name)

if __name__ == "__main__":
    asyncio.run(main())
""",
        **SPAWNING,
    )
    outcome = program.wait()
    error, *others = outcome.stdout.splitlines()
    assert "Too many open files" in error, outcome.stderr
    assert others == ["True", "RUNNING"], outcome.stderr


def test_a_process_is_respawned_whenever_it_ends(run: Callable[..., Any], tmp_path: Path) -> None:
    async def main() -> None:
        service = Again(folder=tmp_path, process_poll_timeout=0.01)
        async with entrypoint(service, log_config=False):
            await eventually(lambda: len(list(tmp_path.iterdir())) >= 4)

    with no_new_children():
        run(main())


def test_respawning_is_an_endless_restart_with_a_bounded_delay(tmp_path: Path) -> None:
    policy = Again(folder=tmp_path, process_poll_timeout=0.5).on_crash
    assert isinstance(policy, Restart)
    assert (policy.limit, policy.max_delay) == (float("inf"), 0.5)
    assert Again(folder=tmp_path).on_crash.max_delay == 5
    assert Again(folder=tmp_path, on_crash="ignore").on_crash == "ignore"
    assert RespawningProcessService.process_poll_timeout == 5


@pytest.mark.parametrize("turns", [0, 1, 3, 30])
def test_a_stop_in_any_phase_of_the_start_leaves_no_process(
    run: Callable[..., Any], turns: int
) -> None:
    async def main() -> None:
        service = Work(process_stop_timeout=1)
        start = asyncio.create_task(service.start())
        for _ in range(turns):
            await asyncio.sleep(0.003)
        start.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await start

    with no_new_children():
        run(main())


def test_many_starts_and_stops_leave_nothing(run: Callable[..., Any]) -> None:
    async def main() -> None:
        service = Work()
        async with entrypoint(service, log_config=False):
            pass
        before = count_descriptors(), threading.active_count()
        for _ in range(5):
            async with entrypoint(service, log_config=False):
                pass
        assert (count_descriptors(), threading.active_count()) <= before

    with no_new_children():
        run(main())


def test_a_service_without_in_process_cannot_be_made() -> None:
    class Nothing(ProcessService): ...

    with pytest.raises(TypeError, match="in_process"):
        Nothing()  # type: ignore[abstract]


def test_a_wrong_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="Work") as caught:
        Work(process_stop_timeout=-1)
    assert refuses(caught.value, "process_stop_timeout=-1")

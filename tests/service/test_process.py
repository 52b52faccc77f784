"""Laws of services that run in processes of their own (C44)."""

import asyncio
import contextlib
import logging
import os
import pickle
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from svcrun import Restart, ServiceState, entrypoint
from svcrun.errors import ProcessEnded
from svcrun.service.process import ProcessService, RespawningProcessService
from tests.service.processes import Again, AtImport, Bomb, Work
from tests.support import PATIENCE, LoopFactory, Program, eventually, refuses

PATHS = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]


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


def is_alive(pid: int) -> bool:
    """Return whether a process runs, and is no zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until_gone(*pids: int, within: float = PATIENCE) -> None:
    """Wait until none of the processes exists."""
    deadline = time.monotonic() + within
    while any(map(is_alive, pids)):
        assert time.monotonic() < deadline, pids
        time.sleep(0.01)


def count_descriptors() -> int:
    """Return the number of open descriptors of this process."""
    return len(list(Path("/proc/self/fd").iterdir()))


@contextlib.contextmanager
def no_new_children() -> Iterator[None]:
    """Fail if the block leaves a child process, but for the resource tracker of multiprocessing."""
    before = set(psutil.Process().children())
    yield
    left = {
        child
        for child in set(psutil.Process().children()) - before
        if "resource_tracker" not in " ".join(child.cmdline())
    }
    assert not left


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


def test_a_process_that_dies_before_it_is_ready_fails_the_start(
    run: Callable[..., Any], capfd: pytest.CaptureFixture[str]
) -> None:
    async def main() -> None:
        async with entrypoint(AtImport(argument=Bomb()), log_config=False):
            raise AssertionError

    with no_new_children(), pytest.raises(ProcessEnded, match="before it was ready"):
        run(main())
    assert "dead at import" in capfd.readouterr().err


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
        measured=False,
        options=(),
        env={"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *PATHS])},
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
        before = count_descriptors()
        for _ in range(5):
            async with entrypoint(service, log_config=False):
                pass
        assert count_descriptors() <= before

    with no_new_children():
        run(main())


@pytest.mark.parametrize("what", ["wait", "ignore_sigterm", "fork_on", "fork_stubbornly"])
def test_no_process_outlives_a_program_that_is_killed(
    run_program: Callable[..., Program], what: str, tmp_path: Path
) -> None:
    program = run_program(
        f"""
from pathlib import Path
from svcrun import entrypoint
from tests.service.processes import Work

if __name__ == "__main__":
    service = Work(what={what!r}, folder=Path({str(tmp_path)!r}))
    with entrypoint(service, log_format="plain") as loop:
        print(service.process.pid, flush=True)
        loop.run_forever()
""",
        measured=False,
        options=(),  # the child forks while a thread waits for its parent, which is a warning
        env={"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *PATHS])},
    )
    pid = int(program.wait_for_line(r"^(\d+)$")[1])
    program.wait_for_line("hello", stream="stderr")
    if what != "wait":
        program.wait_for_line("ignoring|forked", stream="stderr")
    family = [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    program.send_signal(signal.SIGKILL)
    wait_until_gone(*family)


def test_a_service_without_in_process_cannot_be_made() -> None:
    class Nothing(ProcessService): ...

    with pytest.raises(TypeError, match="in_process"):
        Nothing()  # type: ignore[abstract]


def test_a_wrong_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="Work") as caught:
        Work(process_stop_timeout=-1)
    assert refuses(caught.value, "process_stop_timeout=-1")

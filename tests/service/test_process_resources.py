"""Laws of processes that get large arguments, or too few resources (C44)."""

import asyncio
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from svcrun import ServiceState, entrypoint
from svcrun._processes import guard
from svcrun._processes.spawned_process import SpawnedProcess
from svcrun.service._internals import part_of
from svcrun.service.process import ProcessState
from tests.service.process_tools import SPAWNING, no_new_children, wait_until_gone
from tests.service.processes import Sized, Work
from tests.support import PATIENCE, LoopFactory, Program, eventually

SIZES = [100, 40_000, 3_000_000]


@pytest.mark.parametrize("has_memfd", [True, False])
def test_arguments_of_any_size_arrive(
    loop_factory: LoopFactory,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    *,
    has_memfd: bool,
) -> None:
    if not has_memfd:
        monkeypatch.delattr(os, "memfd_create", raising=False)
    queue = multiprocessing.get_context("spawn").SimpleQueue()

    async def main() -> None:
        services = [Sized(data=bytes(size), queue=queue) for size in SIZES]
        async with entrypoint(*services, log_config=False):
            await eventually(lambda: all(f"{size} bytes" in caplog.messages for size in SIZES))
        assert [await asyncio.to_thread(queue.get) for _ in SIZES] == ["hello"] * len(SIZES)

    with no_new_children(), asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())
    queue.close()


@pytest.mark.parametrize("is_own_child", [True, False])
def test_a_number_that_is_of_another_process_by_now_gets_no_signal(
    loop_factory: LoopFactory, *, is_own_child: bool
) -> None:
    """Other code has waited for the process, and the kernel has used the number again."""
    code = "import os, sys, time; os.setpgid(0, 0); print(os.getpid(), flush=True); time.sleep(600)"
    if not is_own_child:
        code = f"import os\nif os.fork(): os._exit(0)\n{code}"
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    number = int(other.stdout.readline())
    if not is_own_child:
        other.wait(PATIENCE)

    async def main() -> None:
        service = Work(on_crash="ignore")
        async with entrypoint(service, log_config=False):
            process = part_of(service, ProcessState).current
            assert isinstance(process, SpawnedProcess)
            os.kill(process.pid, signal.SIGKILL)
            os.waitpid(process.pid, 0)  # noqa: ASYNC222 - it ends at once
            guard.release(process.pid)
            process.pid = number
            await eventually(lambda: service.state is ServiceState.FAILED)

    try:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(main())
        os.kill(number, 0)
        assert other.poll() is (None if is_own_child else 0)
    finally:
        os.kill(number, signal.SIGKILL)
        other.wait(PATIENCE)
        other.stdout.close()


def test_forked_processes_end_also_if_other_code_has_waited_for_their_parent(
    loop_factory: LoopFactory, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> int:
        service = Work(what="fork_on", on_crash="ignore")
        async with entrypoint(service, log_config=False):
            await eventually(lambda: "forked" in caplog.text)
            assert service.process is not None
            pid = service.process.pid or 0
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)  # noqa: ASYNC222 - it ends at once
            await eventually(lambda: service.state is ServiceState.FAILED)
        return next(int(m.split()[1]) for m in caplog.messages if m.startswith("forked"))

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        wait_until_gone(runner.run(main()))


def test_a_start_without_a_thread_to_watch_the_process_fails_and_leaves_none(
    loop_factory: LoopFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A system without pidfd needs the thread. The kernel refuses a stack of 64 TiB."""
    monkeypatch.delattr(os, "pidfd_open", raising=False)

    async def main() -> None:
        async with entrypoint(log_config=False) as ep:
            await asyncio.to_thread(int)  # the pool has its thread
            service = Work()
            usual = threading.stack_size(1 << 46)
            try:
                with pytest.raises(OSError, match="no thread to watch a process"):
                    await ep.start_services(service)
            finally:
                threading.stack_size(usual)
            await ep.start_services(service)
            assert service.state is ServiceState.RUNNING

    with no_new_children(), asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())


def test_a_limit_of_file_sizes_fails_the_start_with_large_arguments(
    run_program: Callable[..., Program],
) -> None:
    outcome = run_program(
        """
import asyncio, resource
from svcrun import entrypoint
from tests.service.processes import Sized

async def main():
    async with entrypoint(log_config=False) as ep:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            await ep.start_services(Sized(data=bytes(1_000_000)))
        except OSError as error:
            print(error)
        service = Sized(data=b"")
        await ep.start_services(service)
        print(service.state.name)

if __name__ == "__main__":
    asyncio.run(main())
""",
        **SPAWNING,
    ).wait()
    assert outcome.stdout == "[Errno 27] File too large\nRUNNING\n", outcome.stderr

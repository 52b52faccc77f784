"""Laws of the thread pool."""

import asyncio
import concurrent.futures
import contextlib
import gc
import logging
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from svcrun import thread_pool
from svcrun.errors import PoolClosed
from svcrun.thread_pool import ThreadPoolExecutor
from svcrun.thread_pool.executor import JobFuture, get_pool
from tests.support import PATIENCE, STRICT, LoopFactory, Program, eventually


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    deadline = time.monotonic() + PATIENCE
    while thread_names() and time.monotonic() < deadline:
        time.sleep(0.001)
    assert not thread_names()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(2)
    yield pool
    pool.shutdown()


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """An event that jobs of a test wait for; it is set at the end of the test at the latest."""
    event = threading.Event()
    yield event
    event.set()


def hold(
    pool: ThreadPoolExecutor, release: threading.Event, number: int = 1
) -> list[JobFuture[bool]]:
    """Return so many jobs that run until they are released."""
    begun = threading.Barrier(number + 1)

    def job_that_holds() -> bool:
        begun.wait(PATIENCE)
        return release.wait(PATIENCE)

    jobs = [pool.submit(job_that_holds) for _ in range(number)]
    begun.wait(PATIENCE)
    return jobs


def thread_names() -> set[str]:
    return {thread.name for thread in threading.enumerate() if "svcrun" in thread.name}


def meet(pool: ThreadPoolExecutor, number: int) -> None:
    """Return when so many jobs have run at the same time."""
    barrier = threading.Barrier(number)
    jobs = [pool.submit(barrier.wait, PATIENCE) for _ in range(number)]
    concurrent.futures.wait(jobs)


def test_a_pool_starts_no_thread_before_its_first_job() -> None:
    pool = ThreadPoolExecutor(4)
    assert not thread_names()
    pool.shutdown()


def test_a_pool_grows_to_its_size_and_not_beyond(pool: ThreadPoolExecutor) -> None:
    meet(pool, 2)
    assert thread_names() == {"svcrun-pool-1", "svcrun-pool-2"}
    meet(pool, 2)
    concurrent.futures.wait([pool.submit(time.sleep, 0.001) for _ in range(20)])
    assert thread_names() == {"svcrun-pool-1", "svcrun-pool-2"}


async def test_an_idle_thread_is_used_again(pool: ThreadPoolExecutor) -> None:
    for _ in range(20):
        pool.submit(int).result(PATIENCE)
        await eventually(lambda: pool._workers.idle == 1)  # the thread waits again
    assert thread_names() == {"svcrun-pool-1"}


def test_threads_are_daemons_that_the_interpreter_does_not_wait_for(
    pool: ThreadPoolExecutor,
) -> None:
    assert pool.submit(lambda: threading.current_thread().daemon).result(PATIENCE)


def test_a_pool_behaves_like_that_of_the_standard_library(pool: ThreadPoolExecutor) -> None:
    assert isinstance(pool, concurrent.futures.ThreadPoolExecutor)
    assert pool.submit(divmod, 7, 4).result(PATIENCE) == (1, 3)
    assert pool.submit(int, "12", base=8).result(PATIENCE) == 10
    assert list(pool.map(abs, (-1, -2))) == [1, 2]
    with pytest.raises(ZeroDivisionError):
        pool.submit(divmod, 1, 0).result(PATIENCE)


async def test_a_pool_works_as_default_executor(pool: ThreadPoolExecutor) -> None:
    loop = asyncio.get_running_loop()
    loop.set_default_executor(pool)
    name = await loop.run_in_executor(None, lambda: threading.current_thread().name)
    assert name.startswith("svcrun-pool-")


async def test_the_future_of_submit_is_awaitable(pool: ThreadPoolExecutor) -> None:
    assert await pool.submit(abs, -1) == 1
    jobs = [pool.submit(abs, number) for number in (-2, -3)]
    assert await asyncio.gather(*jobs) == [2, 3]
    with pytest.raises(ZeroDivisionError):
        await pool.submit(divmod, 1, 0)


async def test_cancelling_the_awaiting_task_drops_a_job_that_has_not_started(
    pool: ThreadPoolExecutor, release: threading.Event
) -> None:
    hold(pool, release, 2)
    ran: list[int] = []
    loop = asyncio.get_running_loop()
    queued = loop.run_in_executor(pool, ran.append, 1)
    queued.cancel()
    await asyncio.sleep(0)
    release.set()
    await loop.run_in_executor(pool, ran.append, 2)
    assert ran == [2]


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit, Exception])
def test_any_exception_of_a_job_is_set_on_its_future_and_the_thread_continues(
    error: type[BaseException],
) -> None:
    def fail() -> None:
        raise error

    with ThreadPoolExecutor(1) as pool:
        assert isinstance(pool.submit(fail).exception(PATIENCE), error)
        assert pool.submit(abs, -1).result(PATIENCE) == 1
        assert thread_names() == {"svcrun-pool-1"}


@pytest.mark.parametrize("job", [abs, divmod], ids=["returns", "raises"])
def test_a_future_settled_from_outside_harms_no_thread(
    job: Callable[..., Any], release: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    begun = threading.Event()

    def work() -> Any:
        begun.set()
        release.wait(PATIENCE)
        return job(-1)

    with ThreadPoolExecutor(1) as pool:
        running, queued = pool.submit(work), pool.submit(work)
        begun.wait(PATIENCE)
        running.set_result("outside")
        queued.set_exception(asyncio.CancelledError())
        release.set()
        assert pool.submit(abs, -2).result(PATIENCE) == 2
        assert running.result() == "outside"
        assert thread_names() == {"svcrun-pool-1"}
    assert not caplog.records


def test_a_callback_that_raises_a_base_exception_is_logged_and_the_thread_continues(
    caplog: pytest.LogCaptureFixture, release: threading.Event
) -> None:
    def fail(_: object) -> None:
        raise SystemExit

    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(release.wait, PATIENCE)
        job.add_done_callback(fail)
        release.set()
        assert pool.submit(abs, -1).result(PATIENCE) == 1
    (record,) = caplog.records
    assert record.levelno == logging.CRITICAL


def test_a_finished_job_leaves_nothing_behind(pool: ThreadPoolExecutor) -> None:
    class Argument: ...

    argument = Argument()
    alive = weakref.ref(argument)

    def fail(argument: Argument) -> None:
        raise ZeroDivisionError

    gc.disable()  # a cycle would only go with the collector
    try:
        assert pool.submit(fail, argument).exception(PATIENCE)
        del argument
        pool.submit(abs, -1).result(PATIENCE)
        pool.submit(abs, -1).result(PATIENCE)
        deadline = time.monotonic() + PATIENCE
        while alive() is not None and time.monotonic() < deadline:
            time.sleep(0.001)
        assert alive() is None
    finally:
        gc.enable()


def test_a_dropped_pool_ends_its_threads_when_the_jobs_are_done(release: threading.Event) -> None:
    pool = ThreadPoolExecutor(2)
    (job,) = hold(pool, release)
    del pool
    gc.collect()
    release.set()
    assert job.result(PATIENCE)
    # The fixture checks that no thread is left.


def test_shutdown_lets_queued_jobs_run(release: threading.Event) -> None:
    pool = ThreadPoolExecutor(1)
    jobs = [pool.submit(release.wait, PATIENCE) for _ in range(3)]
    release.set()
    pool.shutdown()
    assert all(job.done() for job in jobs)
    assert all(job.result() for job in jobs)
    assert not thread_names()


def test_shutdown_can_cancel_queued_jobs(release: threading.Event) -> None:
    pool = ThreadPoolExecutor(1)
    (running,) = hold(pool, release)
    queued = pool.submit(abs, -1)
    pool.shutdown(wait=False, cancel_futures=True)
    assert concurrent.futures.wait(
        [queued], PATIENCE
    ).done  # this kind of wait notices the end as well
    assert queued.cancelled()
    release.set()
    pool.shutdown()
    assert running.result()


def test_after_shutdown_jobs_are_refused_with_a_reason() -> None:
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    pool.shutdown()
    with pytest.raises(RuntimeError, match=r"svcrun-pool is shut down.*<class 'int'>"):
        pool.submit(int).result()


async def test_close_waits_for_running_jobs_without_blocking_the_loop(
    release: threading.Event,
) -> None:
    pool = ThreadPoolExecutor(2)
    jobs = hold(pool, release, 2)
    closing = asyncio.create_task(pool.close(PATIENCE))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not closing.done()
    release.set()
    assert await closing == []
    assert [job.result(0) for job in jobs] == [True, True]
    assert not thread_names()


async def test_close_cancels_queued_jobs(release: threading.Event) -> None:
    pool = ThreadPoolExecutor(1)
    loop = asyncio.get_running_loop()
    (running,) = hold(pool, release)
    queued = loop.run_in_executor(pool, release.wait, PATIENCE)
    closing = asyncio.create_task(pool.close(PATIENCE))
    with pytest.raises(asyncio.CancelledError):
        await queued
    release.set()
    assert await closing == []
    assert await running


async def test_close_returns_hung_threads_with_their_stacks(release: threading.Event) -> None:
    pool = ThreadPoolExecutor(2)
    (job,) = hold(pool, release)
    (hung,) = await pool.close(timeout=0.01)
    assert hung.name == "svcrun-pool-1"
    assert "in job_that_holds" in hung.stack
    assert "release.wait(PATIENCE)" in hung.stack
    assert str(hung).startswith("thread 'svcrun-pool-1' is at\n")
    assert repr(hung) == "<HungThread 'svcrun-pool-1'>"
    assert not job.done()

    # The thread is abandoned.
    assert await pool.close(timeout=PATIENCE) == []
    pool.shutdown(wait=True)
    assert not job.done()
    release.set()
    job.result(PATIENCE)


async def test_closing_an_unused_pool_takes_no_iteration_of_the_loop() -> None:
    closing = ThreadPoolExecutor(2).close(timeout=0)
    with pytest.raises(StopIteration) as result:
        closing.send(None)
    assert result.value.value == []


async def test_closing_can_be_cancelled_and_repeated(release: threading.Event) -> None:
    pool = ThreadPoolExecutor(1)
    hold(pool, release)
    closing = asyncio.create_task(pool.close())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    release.set()
    assert await pool.close(PATIENCE) == []


def test_a_job_that_ends_after_its_loop_was_closed_is_silent(
    loop_factory: LoopFactory, release: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    pool = ThreadPoolExecutor(1)
    loop = loop_factory()
    begun = threading.Event()

    def work() -> None:
        begun.set()
        release.wait(PATIENCE)

    async def start() -> None:
        job = loop.run_in_executor(pool, work)
        await asyncio.wait({job}, timeout=0)
        begun.wait(PATIENCE)
        assert len(await pool.close(timeout=0.01)) == 1

    loop.run_until_complete(start())
    loop.close()
    release.set()
    for thread in threading.enumerate():
        if thread.name.startswith("svcrun-"):
            thread.join(PATIENCE)
    assert not caplog.records


async def test_submit_raises_if_no_thread_can_start(
    monkeypatch: pytest.MonkeyPatch, pool: ThreadPoolExecutor
) -> None:
    def refuse(_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            await pool.submit(abs, -1)
    # The job is not queued, and the pool still works.
    assert pool._workers.jobs.empty()
    assert await pool.submit(abs, -1) == 1
    await eventually(lambda: pool._workers.idle == 1)
    assert thread_names() == {"svcrun-pool-1"}


def test_a_pool_that_cannot_grow_works_with_the_threads_it_has(
    monkeypatch: pytest.MonkeyPatch,
    pool: ThreadPoolExecutor,
    release: threading.Event,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(_: object) -> None:
        raise RuntimeError("can't start new thread")

    (first,) = hold(pool, release)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        second = pool.submit(abs, -1)
    release.set()
    assert first.result(PATIENCE)
    assert second.result(PATIENCE) == 1
    assert [record.getMessage() for record in caplog.records] == [
        "svcrun-pool can't grow beyond 1 threads"
    ]


@pytest.mark.parametrize("size", [0, -1])
def test_a_pool_of_no_threads_is_refused_by_name_and_value(size: int) -> None:
    with pytest.raises(ValueError, match=rf"max_workers must be at least 1, not {size}"):
        ThreadPoolExecutor(size)


@pytest.mark.parametrize("size", ["4", 1.0, True])
def test_a_size_of_another_type_is_refused(size: Any) -> None:
    with pytest.raises(
        TypeError, match=rf"max_workers must be a whole number of threads, not {size!r}"
    ):
        ThreadPoolExecutor(size)


def test_the_default_size_depends_on_the_number_of_processors() -> None:
    assert 4 <= ThreadPoolExecutor.DEFAULT_POOL_SIZE <= 32
    assert ThreadPoolExecutor()._workers.size == ThreadPoolExecutor.DEFAULT_POOL_SIZE


async def test_a_pool_is_attached_to_a_loop_until_its_end() -> None:
    loop = asyncio.get_running_loop()
    outer, inner = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
    assert get_pool(loop) is None
    outer.attach(loop)
    inner.attach(loop)
    assert get_pool(loop) is inner
    await outer.close()
    assert get_pool(loop) is inner
    inner.shutdown()
    assert get_pool(loop) is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system can't fork")
def test_a_pool_works_again_in_a_forked_child(run_program: Callable[..., Program]) -> None:
    program = run_program(
        """
import os, sys, threading, warnings
from svcrun.thread_pool import ThreadPoolExecutor

warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads
pool = ThreadPoolExecutor(2)
release = threading.Event()
pool.submit(release.wait)
pool._workers.lock.acquire()  # as another thread of the parent might have
pid = os.fork()
if pid == 0:
    assert threading.active_count() == 1
    print(pool.submit(divmod, 7, 4).result(20), flush=True)
    pool.shutdown()
    os._exit(0)
pool._workers.lock.release()
release.set()
assert os.waitpid(pid, 0)[1] == 0
print(pool.submit(abs, -1).result(20))
"""
    )
    outcome = program.wait()
    assert (outcome.returncode, outcome.stderr) == (0, "")
    assert outcome.stdout.split("\n") == ["(1, 3)", "1", ""]


@pytest.mark.parametrize("used", ["await pool.close(timeout=0.01)", "pass"])
def test_a_job_that_hangs_does_not_delay_the_exit(
    used: str, run_program: Callable[..., Program]
) -> None:
    program = run_program(
        f"""
import asyncio, threading
from svcrun.thread_pool import ThreadPoolExecutor

async def main():
    pool = ThreadPoolExecutor(2)
    begun = threading.Event()

    def hang():
        begun.set()
        threading.Event().wait()

    job = pool.submit(hang)
    begun.wait()
    {used}

asyncio.run(main())
"""
    )
    outcome = program.wait()
    assert (outcome.returncode, outcome.stderr) == (0, "")


def test_every_exported_name_can_be_imported() -> None:
    for name in thread_pool.__all__:
        exported = getattr(thread_pool, name)
        assert exported.__name__ == name or exported is PoolClosed
    assert set(thread_pool.__all__) <= set(dir(thread_pool))
    with pytest.raises(AttributeError, match=r"svcrun\.thread_pool.*'nonsense'"):
        thread_pool.nonsense  # type: ignore[attr-defined]  # noqa: B018


def test_a_program_that_only_needs_the_pool_does_not_load_the_rest() -> None:
    code = (
        "import sys\n"
        "from svcrun.thread_pool import ThreadPoolExecutor\n"
        "print(*(name for name in sys.modules if name.startswith('svcrun.thread_pool.')))"
    )
    output = subprocess.run(
        [sys.executable, *STRICT, "-c", code], capture_output=True, check=True, text=True
    ).stdout
    assert set(output.split()) == {"svcrun.thread_pool.executor", "svcrun.thread_pool.thread_group"}


def test_many_jobs_of_many_threads_all_run(pool: ThreadPoolExecutor) -> None:
    results: list[int] = []

    def submit(start: int) -> None:
        for job in [pool.submit(results.append, start + number) for number in range(200)]:
            job.result(PATIENCE)

    submitters = [threading.Thread(target=submit, args=(n * 200,)) for n in range(5)]
    with contextlib.ExitStack() as stack:
        for submitter in submitters:
            submitter.start()
            stack.callback(submitter.join)
    assert sorted(results) == list(range(1000))

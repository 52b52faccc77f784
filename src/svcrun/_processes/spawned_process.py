"""The parent's side of a spawned process: its start, its log records, its exit."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import multiprocessing
import os
import signal
import threading
from contextlib import ExitStack, suppress
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, Any, Final

from svcrun._processes import guard
from svcrun._processes.arguments import Arguments
from svcrun._processes.child import ChildPipe, run_child
from svcrun._util.current_service import on_behalf_of
from svcrun._util.drain import GRACE_PERIOD
from svcrun._util.rate_limited_log import RateLimitedLog
from svcrun.errors import show

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from multiprocessing.context import SpawnProcess

__all__ = ("SpawnedProcess",)

log = logging.getLogger("svcrun.process")

_FIRST_STEPS: Final = 0.1
"""Seconds from readiness to SIGTERM at least, so that the function reaches its ``try``."""

_UNREPORTED: Final = (
    "its standard error shows the cause, such as a missing if __name__ == '__main__':"
)
"""Why a process was not ready that could not report an error: its main module was not imported."""

_READ_SIZE: Final = 1 << 16
_LAST_READS: Final = 16
"""The maximum number of reads after the end of the child; a pipe holds 64 KiB by default."""
_MAX_LINE: Final = 1 << 20
"""The longest line in bytes that the parent keeps, in case the child writes no line end."""


class SpawnedProcess:
    """A function that runs in a process of its own.

    :param owner: the service, for log messages.
    :param function: the function; it is pickled, and so are `kwargs`.
    :param name: the name of the process.
    """

    def __init__(
        self,
        owner: object,
        function: Callable[..., object],
        kwargs: Mapping[str, Any],
        name: str | None,
    ) -> None:
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[None] = self._loop.create_future()
        self.exited: asyncio.Future[int | None] = self._loop.create_future()
        """Done with the exit code, or the negative number of the signal that ended the process.

        It is None if other code of the program has waited for the process, and taken its code.
        """
        context = multiprocessing.get_context("spawn")
        self._call = Arguments(function, kwargs)
        with ExitStack() as on_error:
            self._pipe, self._childs_end = context.Pipe(duplex=False)
            on_error.callback(self._pipe.close)
            on_error.callback(self._childs_end.close)
            self._guarded, self._guard = context.Pipe(duplex=False)
            on_error.pop_all()
        self.process: SpawnProcess = context.Process(
            target=run_child,
            args=(
                ChildPipe(self._childs_end),
                self._guarded,
                self._call,
                os.getpid(),
                logging.getLogger().level,
            ),
            name=name,
        )
        self.is_started = False
        """Whether the process was spawned, and has to be stopped."""
        self.pid = 0
        self._cause = _UNREPORTED
        self._ready_at = 0.0
        self._descriptor: int | None = None
        self._data = b""
        self._garbage = RateLimitedLog(log)

    async def start(self) -> None:
        """Start the process; return when it was spawned.

        :raises OSError: if no process or descriptor is left.
        :raises Exception: if the function or an argument can't be pickled.
        """
        # In a thread, because large arguments take long to pickle.
        spawn = self._loop.run_in_executor(None, self._spawn)
        try:
            await asyncio.shield(spawn)
        except asyncio.CancelledError:
            while not spawn.done():  # a further cancellation must not leave a process behind
                with suppress(asyncio.CancelledError):
                    await asyncio.wait((spawn,))
            if spawn.exception() is None:
                self._watch()
                await self.stop(0)
            raise
        self._watch()

    async def stop(self, timeout: float) -> None:
        """Send SIGTERM, and SIGKILL after `timeout` seconds; return when the process has ended."""
        if self.exited.done():
            return
        if timeout > 0:
            early = self._ready_at + _FIRST_STEPS - self._loop.time()
            if early > 0:
                await asyncio.wait((self.exited,), timeout=early)
                if self.exited.done():
                    return
            self._kill(signal.SIGTERM)
            await asyncio.wait((self.exited,), timeout=timeout)
        if not self.exited.done():
            if timeout > 0:
                log.warning(
                    "%s: process %d did not end within process_stop_timeout=%g s; killing it",
                    show(self._owner),
                    self.pid,
                    timeout,
                )
            self._kill(signal.SIGKILL)
            await asyncio.wait((self.exited,), timeout=GRACE_PERIOD)

    def describe_end(self, code: int | None) -> str:
        """Return how the process ended, and why it was not ready."""
        reason = "" if self.ready.done() else f" before it was ready: {self._cause}"
        return describe_exit(code) + reason

    def _kill(self, signum: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            if self._descriptor is not None:
                signal.pidfd_send_signal(self._descriptor, signum)
            elif self._has_its_number(is_ended=False):
                os.kill(self.pid, signum)

    def _kill_group(self) -> None:
        """Kill the processes that the process has forked, after its end."""
        with suppress(ProcessLookupError, PermissionError):
            # The kernel gives the number of a group to no new process. So if no process has the
            # number, the group is that of the process, or there is none.
            if self._has_its_number(is_ended=True) or not _exists(self.pid):
                os.killpg(self.pid, signal.SIGKILL)

    def _has_its_number(self, *, is_ended: bool) -> bool:
        """Check that no other code has waited for the process: its number is not free yet."""
        try:
            found = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return False
        return (found is not None) or not is_ended

    def _spawn(self) -> None:
        try:
            # It would unblock SIGINT during the start of the process.
            resource_tracker.ensure_running()
            # A process inherits the mask of the thread that spawns it. So it does not end with a
            # traceback if Ctrl-C interrupts the program while the process imports its modules.
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))
            try:
                self.process.start()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            try:
                guard.watch(self.process.pid or 0)
                with suppress(OSError):  # the process has ended
                    self._guard.send_bytes(b"1")
            except BaseException:
                self.process.kill()
                self.process.join()
                raise
        except BaseException:
            self._pipe.close()
            raise
        finally:
            for end in (self._childs_end, self._guarded, self._guard, self._call):
                end.close()

    def _watch(self) -> None:
        self.pid = self.process.pid or 0
        self.is_started = True
        os.set_blocking(self._pipe.fileno(), False)
        self._loop.add_reader(self._pipe.fileno(), self._on_data)
        try:
            self._descriptor = os.pidfd_open(self.pid)
        except (AttributeError, OSError):  # no such system call, or no descriptor left
            self._wait_in_thread()
        else:
            self._loop.add_reader(self._descriptor, self._on_exit)

    def _wait_in_thread(self) -> None:
        try:
            threading.Thread(target=self._wait, name="svcrun-process", daemon=True).start()
        except RuntimeError as error:
            # The end of the process could not be noticed, so do without the process.
            self._kill(signal.SIGKILL)
            self._wait()
            raise OSError(errno.EAGAIN, f"no thread to watch a process: {error}") from error

    def _wait(self) -> None:
        # Without reaping the process, as its number must stay its own until _on_exit().
        with suppress(ChildProcessError):
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        with suppress(RuntimeError):  # race: the loop was closed
            self._loop.call_soon_threadsafe(self._on_exit)

    def _on_exit(self) -> None:
        if self._descriptor is not None:
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None
        self._kill_group()
        guard.release(self.pid)
        # Race: the last records may be in the pipe. A process that has left the group may hold the
        # other end, and write on without end.
        with suppress(BlockingIOError):
            for _ in range(_LAST_READS):
                if not self._read():
                    break
        self._loop.remove_reader(self._pipe.fileno())
        self._pipe.close()
        self.process.join()
        code = self.process.exitcode
        if code is not None:
            self.process.close()
        log.info("%s: process %d ended with %s", show(self._owner), self.pid, describe_exit(code))
        self.exited.set_result(code)

    def _on_data(self) -> None:
        with suppress(BlockingIOError):
            if not self._read():
                # The child has closed its end. It may run on, so the exit is not known yet.
                self._loop.remove_reader(self._pipe.fileno())

    def _read(self) -> bool:
        """Read some data, and return whether there may be more.

        :raises BlockingIOError: if there is no data now.
        """
        data = os.read(self._pipe.fileno(), _READ_SIZE)
        if not data:
            return False
        *lines, self._data = (self._data + data).split(b"\n")
        for line in lines:
            self._take(line)
        if len(self._data) > _MAX_LINE:
            self._data = b""
            self._garbage.add("%s: dropped data of its process without a line end", self._owner)
        return True

    def _take(self, line: bytes) -> None:
        try:
            found = json.loads(line)
            if "failed" in found:
                self._cause = str(found["failed"])
                return
            if found.get("ready"):
                if not self.ready.done():
                    self.ready.set_result(None)
                    self._ready_at = self._loop.time()
                return
            record = logging.makeLogRecord({**found, "process": self.pid})
            record.levelname = logging.getLevelName(record.levelno)
            record.processName = self.process.name
            logger = logging.getLogger(record.name)
            if logger.isEnabledFor(record.levelno):
                with on_behalf_of(self._owner):
                    logger.handle(record)
        except Exception:  # noqa: BLE001 - the child may write anything to the pipe
            self._garbage.add("%s: dropped a line of its process that is no record", self._owner)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def describe_exit(code: int | None) -> str:
    """Return an exit code, or the name of the signal that ended a process."""
    if code is None:
        return "an unknown exit code, because other code has waited for it"
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"

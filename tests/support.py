"""Helpers of several test modules: programs in subprocesses, leaks, event loops."""

import asyncio
import contextlib
import functools
import gc
import importlib.util
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

ROOT: Final = Path(__file__).resolve().parent.parent

# Seconds until a test fails that waits for an event. Machines are busy, so this is long.
PATIENCE: Final = 30.0

# The value of SVCRUN_TEST_PROFILE: "quick", nothing, or "thorough".
PROFILE: Final = os.environ.get("SVCRUN_TEST_PROFILE", "normal")

# Warnings are errors, asyncio runs its checks, and unclosed resources are reported.
STRICT: Final = ("-X", "dev", "-W", "error")

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


def has(*modules: str) -> bool:
    """Check whether all top-level *modules* can be imported, without importing them."""
    return all(importlib.util.find_spec(module) is not None for module in modules)


def examples(count: int) -> int:
    """Return the number of random examples to try, where *count* is that of the normal profile."""
    return max(1, round(count * {"quick": 0.25, "normal": 1, "thorough": 50}[PROFILE]))


def loop_factories() -> dict[str, LoopFactory]:
    """Return the event loops to test with: the stock loop, and uvloop where it is installed.

    ``SVCRUN_TEST_LOOP`` names one of them.
    """
    factories: dict[str, LoopFactory] = {"asyncio": asyncio.SelectorEventLoop}
    if has("uvloop"):
        import uvloop

        factories["uvloop"] = uvloop.new_event_loop
    chosen = os.environ.get("SVCRUN_TEST_LOOP")
    return {chosen: factories[chosen]} if chosen else factories


def refuses(error: BaseException, parameter: str) -> bool:
    """Return whether the message of `error` has the text, or refuses "name=value".

    >>> from svcrun.errors import ParameterError
    >>> refuses(ParameterError("Echo", "port", 70000, "between 0 and 65535"), "port=70000")
    True
    """
    name, _, value = parameter.partition("=")
    message = str(error)
    return parameter in message or (f": {name} must be " in message and f", not {value}" in message)


async def eventually(check: Callable[[], object], *, within: float = PATIENCE) -> None:
    """Wait until ``check()`` is true, for conditions without an event to wait for.

    :param within: seconds until the test fails.
    """
    async with asyncio.timeout(within):
        while not check():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.005)


@dataclass(frozen=True)
class Outcome:
    """The exit code and the whole output of a program."""

    returncode: int
    stdout: str
    stderr: str


class Program:
    """A Python program in a subprocess, which is killed at the end of the ``with`` block.

    The methods block. A test that serves the program on its own event loop calls them with
    ``asyncio.to_thread``.

    :param source: the text of the program, or the path of its file.
    :param arguments: its command line.
    :param env: variables to add to its environment. ``SVCRUN_*`` variables and those that systemd
        sets are not inherited.
    :param options: options of the interpreter.
    :param cwd: its working directory.
    :param prefix: a command that runs the interpreter, with the arguments that follow it.
    :param pass_fds: descriptors that the process inherits.
    :param measured: whether its coverage is measured, if that of the tests is. A program that forks
        while another thread runs may inherit a held lock of the coverage tool, and deadlock.

    .. code-block:: python

        with Program("import time; print('ready'); time.sleep(60)") as program:
            program.wait_for_line("ready")
            program.send_signal(signal.SIGTERM)
            assert program.wait().returncode == -signal.SIGTERM
    """

    def __init__(
        self,
        source: str | Path,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        options: Sequence[str] = STRICT,
        cwd: Path | None = None,
        prefix: Sequence[str] = (),
        pass_fds: Sequence[int] = (),
        measured: bool = True,
    ) -> None:
        # The source is in a file, so that tracebacks show its lines and ps stays readable.
        self._folder = tempfile.TemporaryDirectory(prefix="svcrun-test-")
        if isinstance(source, str):
            path = Path(self._folder.name, "program.py")
            path.write_text(source, encoding="utf-8")
        else:
            path = source
        self._process = subprocess.Popen(
            [*prefix, sys.executable, *options, str(path), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=_environment(env or {}, measured=measured),
            cwd=cwd or ROOT,
            pass_fds=pass_fds,
            encoding="utf-8",
            errors="backslashreplace",
            start_new_session=True,  # so that kill() reaches its children
        )
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._stdout = _Output(self._process.stdout)
        self._stderr = _Output(self._process.stderr)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()
        self._folder.cleanup()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def stdout(self) -> str:
        """The output of the program on stdout so far."""
        return self._stdout.text()

    @property
    def stderr(self) -> str:
        """The output of the program on stderr so far."""
        return self._stderr.text()

    def is_running(self) -> bool:
        """Check whether the process is still running."""
        return self._process.poll() is None

    def wait_for_line(
        self, pattern: str, *, stream: str = "stdout", within: float = PATIENCE
    ) -> re.Match[str]:
        """Wait for a line that contains *pattern*, a regular expression, and return the match.

        The next call searches the lines after the found one.

        :param stream: ``"stdout"`` or ``"stderr"``.
        :param within: seconds until the test fails.
        """
        output = {"stdout": self._stdout, "stderr": self._stderr}[stream]
        match = output.find(re.compile(pattern), within)
        if match is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(0.5)  # a process closes its pipes before it ends
            raise AssertionError(
                f"no line with {pattern!r} on {stream} within {within:g} s; "
                f"the program's exit code is {self._process.returncode}"
                f"\n--- stdout\n{self.stdout}\n--- stderr\n{self.stderr}"
            )
        return match

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the process alone, as ``kill`` does."""
        self._process.send_signal(number)

    def interrupt(self) -> None:
        """Send SIGINT, like Ctrl-C at a terminal."""
        self.send_signal(signal.SIGINT)

    def terminate(self) -> None:
        """Send SIGTERM, like ``kill`` and process managers."""
        self.send_signal(signal.SIGTERM)

    def wait(self, *, within: float = PATIENCE) -> Outcome:
        """Wait for the end of the program.

        :param within: seconds until it is killed and the test fails.
        """
        try:
            returncode = self._process.wait(within)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(
                f"the program still ran after {within:g} s"
                f"\n--- stdout\n{self.stdout}\n--- stderr\n{self.stderr}"
            ) from None
        # A child of the program that keeps the pipes open must not block the test.
        self._stdout.join(within)
        self._stderr.join(within)
        return Outcome(returncode, self.stdout, self.stderr)

    def kill(self) -> None:
        """Kill the program and its children, and close its pipes."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for output in (self._stdout, self._stderr):
            output.join(PATIENCE)
            output.close()


def _environment(extra: Mapping[str, str], *, measured: bool) -> dict[str, str]:
    unwanted = {"NOTIFY_SOCKET", "JOURNAL_STREAM", "WATCHDOG_USEC", "WATCHDOG_PID", "INVOCATION_ID"}
    unwanted |= {"LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"}
    if not measured:
        unwanted |= {"COVERAGE_PROCESS_CONFIG", "COVERAGE_PROCESS_START"}
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("SVCRUN_") and name not in unwanted
    }
    # In asyncio's debug mode, which -X dev enables, a busy machine causes warnings of slow calls.
    return {**inherited, "PYTHONUNBUFFERED": "1", "SVCRUN_DEBUG": "0", **extra}


class _Output:
    """The lines of one pipe, read by a thread, so that the program never blocks on a full pipe."""

    def __init__(self, pipe: IO[str]) -> None:
        self._pipe = pipe
        self._lines: list[str] = []
        self._searched = 0
        self._ended = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._read, name="program output", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        for line in self._pipe:
            with self._changed:
                self._lines.append(line)
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def find(self, pattern: re.Pattern[str], within: float) -> re.Match[str] | None:
        deadline = time.monotonic() + within
        with self._changed:
            while True:
                while self._searched < len(self._lines):
                    match = pattern.search(self._lines[self._searched])
                    self._searched += 1
                    if match is not None:
                        return match
                left = deadline - time.monotonic()
                if self._ended or left <= 0:
                    return None
                self._changed.wait(left)

    def text(self) -> str:
        with self._changed:
            return "".join(self._lines)

    def join(self, within: float) -> None:
        self._thread.join(within)

    def close(self) -> None:
        if not self._thread.is_alive():
            self._pipe.close()


@dataclass(frozen=True)
class Resources:
    """The resources that this process holds at one moment."""

    descriptors: Counter[str]
    threads: frozenset[threading.Thread]
    signal_handlers: Mapping[signal.Signals, object]
    wakeup_fd: int | None
    log_handlers: tuple[logging.Handler, ...]

    @classmethod
    def held(cls) -> Self:
        """Return the resources held after a garbage collection."""
        gc.collect()
        return cls(
            descriptors=_descriptors(),
            # Python up to 3.12 never removes a thread that it has not started itself.
            threads=frozenset(t for t in threading.enumerate() if not t.name.startswith("Dummy")),
            signal_handlers={number: signal.getsignal(number) for number in signal.Signals},
            wakeup_fd=_wakeup_fd(),
            # pytest adds its own handlers, different ones in each phase of a test.
            log_handlers=tuple(
                handler
                for handler in logging.getLogger().handlers
                if not type(handler).__module__.startswith("_pytest.")
            ),
        )

    def differences_from(self, before: "Resources") -> list[str]:
        """Describe resources that were not held *before*, and handlers that were not restored."""
        differences = [
            f"file descriptor {target}"
            for target in (self.descriptors - before.descriptors).elements()
        ]
        differences += [f"thread {thread.name}" for thread in self.threads - before.threads]
        differences += [
            f"handler of {number.name}: {handler}, before: {before.signal_handlers[number]}"
            for number, handler in self.signal_handlers.items()
            if handler != before.signal_handlers[number]
        ]
        if self.wakeup_fd != before.wakeup_fd:
            differences.append(f"signal wake-up descriptor {self.wakeup_fd}")
        if self.log_handlers != before.log_handlers:
            differences.append(f"log handlers {self.log_handlers}, before: {before.log_handlers}")
        return differences


def _descriptors() -> Counter[str]:
    folder = Path("/proc/self/fd")  # counted only on Linux
    targets: Counter[str] = Counter()
    for link in folder.iterdir() if folder.is_dir() else ():
        # The descriptor of the folder itself may be closed by now.
        with contextlib.suppress(FileNotFoundError):
            targets[str(link.readlink())] += 1
    return targets


def _wakeup_fd() -> int | None:
    """Return the wake-up descriptor of signals; None in another thread than the main thread."""
    if threading.current_thread() is not threading.main_thread():
        return None
    fd = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(fd)
    return fd


@functools.cache
def _run_each_kind_of_loop() -> None:
    """Make libuv open the pipe that it keeps until the process ends."""

    async def nothing() -> None:
        pass

    def program() -> None:
        for factory in loop_factories().values():
            with asyncio.Runner(loop_factory=factory) as runner:
                runner.run(nothing())

    thread = threading.Thread(target=program)  # a new thread, because this one may run a loop
    thread.start()
    thread.join()


@contextlib.contextmanager
def nothing_left(*, within: float = 10.0) -> Iterator[None]:
    """Fail if the block leaves resources behind, or does not restore handlers.

    This compares file descriptors, threads, signal handlers, and handlers of the root logger.

    :param within: seconds to wait for threads that are ending.
    """
    _run_each_kind_of_loop()
    before = Resources.held()
    yield
    deadline = time.monotonic() + within
    while differences := Resources.held().differences_from(before):
        if time.monotonic() >= deadline:
            raise AssertionError("left behind:\n" + "\n".join(differences))
        time.sleep(0.01)

"""Services in processes of their own; the processes import this module."""

import contextlib
import logging
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from svcrun.service.process import ProcessService, RespawningProcessService

log = logging.getLogger("tests.work")


def wait_for_signal() -> None:
    """Wait without end."""
    while True:
        time.sleep(60)


class Work(ProcessService):
    """A service that does what `what` says, in its process."""

    what: str = "wait"
    folder: Path | None = None

    def get_process_kwargs(self) -> dict[str, Any]:
        return {"greeting": "hello"}

    def in_process(self, greeting: str) -> None:
        """Call the method that `what` names."""
        log.warning("%s from %d", greeting, os.getpid())
        getattr(self, self.what)()

    def wait(self) -> None:
        try:
            wait_for_signal()
        finally:
            if self.folder is not None:
                (self.folder / "finally").touch()

    def end(self) -> None:
        sys.exit(7)

    def give_back(self) -> None: ...

    def fail(self) -> None:
        raise LookupError("no such thing")

    def die(self) -> None:
        log.error("last words")
        os.kill(os.getpid(), signal.SIGKILL)

    def ignore_sigterm(self) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        log.warning("ignoring")
        wait_for_signal()

    def fork_on(self) -> None:
        child = os.fork()
        if child:
            log.warning("forked %d", child)
        wait_for_signal()

    def fork_stubbornly(self) -> None:
        child = os.fork()
        if child:
            log.warning("forked %d", child)
        else:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        wait_for_signal()

    def flood(self) -> None:
        for number in range(20_000):
            log.warning("line %d", number)
        log.warning("flooded")
        wait_for_signal()

    def garbage(self) -> None:
        pipe: Any = logging.getLogger().handlers[0]
        os.write(pipe._pipe.connection.fileno(), b"nonsense\n[1]\n{}\n" + b"x" * 100 + b"\n")
        log.warning("after the garbage")
        wait_for_signal()

    def compute(self) -> None:
        log.warning("computing")
        re.match(r"(a+)+$", "a" * 64 + "b")  # holds the interpreter's lock for years

    def write_without_end(self) -> None:
        """Leave a process of another group behind, which writes to the pipe for ever."""
        pipe: Any = logging.getLogger().handlers[0]
        descriptor = pipe._pipe.connection.fileno()
        child = os.fork()
        if child:
            log.warning("forked %d", child)
            sys.exit(7)
        os.setsid()
        with contextlib.suppress(OSError):
            while True:
                os.write(descriptor, b"[1]\n" * 1000)

    def show_environment(self) -> None:
        code = "import os; print([name for name in os.environ if name.startswith('SVCRUN_LOG')])"
        shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        log.warning("variables %s", shown.stdout.decode().strip())
        wait_for_signal()

    def run_entrypoint(self) -> None:
        from svcrun import entrypoint

        with entrypoint() as loop:
            log.warning("inner")
            loop.run_forever()
        log.warning("left in order")


class Sized(ProcessService):
    """A service with arguments of any size."""

    data: bytes
    queue: Any = None

    def get_process_kwargs(self) -> dict[str, Any]:
        return {"queue": self.queue}

    def in_process(self, queue: Any) -> None:
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        assert not blocked, "processes that this one starts inherit the mask"
        log.warning("%d bytes", len(self.data))
        if queue is not None:
            queue.put("hello")
        wait_for_signal()


class AtImport(ProcessService):
    """A service whose arguments can't be loaded in its process."""

    argument: Any = None

    def in_process(self) -> None: ...


class Bomb:
    """An object whose pickle raises an error when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return explode, ()


def explode() -> None:
    """Raise an error."""
    raise LookupError("dead at import")


class Again(RespawningProcessService):
    """A service whose process ends at once."""

    folder: Path

    def in_process(self) -> None:
        (self.folder / str(os.getpid())).touch()

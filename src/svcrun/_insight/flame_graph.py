"""A flame graph: what a loop's thread is seen at, every few milliseconds."""

from __future__ import annotations

import selectors
import sys
import threading
import time
from typing import TYPE_CHECKING

from pyinstrument.renderers import HTMLRenderer
from pyinstrument.session import Session

from svcrun._util.current_service import current_name, current_service
from svcrun._util.tasks import CALLBACK, running_task_and_service

if TYPE_CHECKING:
    import asyncio
    from types import CodeType, FrameType

__all__ = ("Sampler",)

# Bounds of what is kept, and of the page, which has some megabytes at the most.
_MOST_STACKS = 2_000
_MOST_CALLS = 200  # of a stack
_MOST_LABELS = 10_000

_OTHER_STACKS = "(other stacks)"
_OUTER_CALLS = "(outer calls)"
_NO_SERVICE = "(no service)"

# pyinstrument's page would fetch a font, and begin with a tree. What it calls a timeline is a flame
# graph here, as equal stacks are added up.
_HEAD = """
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:;
  script-src 'unsafe-inline'; style-src 'unsafe-inline'">
<script>
try { localStorage["pyinstrument:viewOptions"] = '{"viewMode": "timeline"}'; } catch {}
</script>
"""

_SEPARATORS = {0: None, 1: None}
_RUNS_LOOP = frozenset({"run_forever", "run_until_complete"})


class Sampler:
    """Looks, in a thread of its own, at what the thread that makes it does, and for whom.

    Equal stacks are added up. The time in which the loop waits is left out.

    :param loop: the loop of the thread.
    :param interval: seconds between two looks.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, interval: float) -> None:
        self._loop = loop
        self._interval = interval
        self._observed = threading.get_ident()
        self._seconds: dict[tuple[str, ...], float] = {}
        self._labels: dict[int, tuple[CodeType, str]] = {}
        self._looks = 0
        self._begin = time.time()
        self._cpu_begin = time.process_time()
        self._is_stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="svcrun-sampler", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._is_stopped.set()
        self._thread.join()

    def render(self) -> str:
        """Return a page with the flame graph of what was seen so far."""
        # Neighbours with the same outer calls become one.
        seen = sorted(self._seconds.copy().items())
        session = Session(
            frame_records=[(list(stack), seconds) for stack, seconds in seen],
            start_time=self._begin,
            duration=time.time() - self._begin,
            min_interval=self._interval,
            max_interval=self._interval,
            sample_count=self._looks,
            start_call_stack=[""],
            target_description="svcrun",
            cpu_time=time.process_time() - self._cpu_begin,
            sys_path=sys.path,
            sys_prefixes=Session.current_sys_prefixes(),
        )
        page: str = HTMLRenderer().render(session)
        return page.replace("<head>", "<head>" + _HEAD, 1)

    def _run(self) -> None:
        last = time.perf_counter()
        while not (self._is_stopped.wait(self._interval) or self._loop.is_closed()):
            now = time.perf_counter()
            self._look(now - last)
            last = now

    def _look(self, seconds: float) -> None:
        self._looks += 1
        frame = sys._current_frames().get(self._observed)  # noqa: SLF001 - public but for its name
        task, service = running_task_and_service(self._loop, frame)
        if frame is None or (task is None and _is_waiting(frame.f_code)):
            return
        current_service.set(service)  # for whom this thread works now
        tag = _plain(current_name() or _NO_SERVICE)
        root = None if task is None else getattr(task.get_coro(), "cr_frame", None)
        stack = (tag, *self._stack(frame, root))
        if stack not in self._seconds and len(self._seconds) >= _MOST_STACKS:
            stack = (tag, _OTHER_STACKS)
        self._seconds[stack] = self._seconds.get(stack, 0) + seconds

    def _stack(self, innermost: FrameType, root: FrameType | None) -> list[str]:
        """Return the calls from `root`, or from the loop, to the innermost one."""
        calls: list[str] = []
        frame: FrameType | None = innermost
        while frame is not None and not _is_of_loop(frame.f_code):
            if len(calls) == _MOST_CALLS:
                calls.append(_OUTER_CALLS)
                break
            calls.append(self._label(frame.f_code))
            if frame is root:
                break
            frame = frame.f_back
        calls.reverse()
        return calls

    def _label(self, code: CodeType) -> str:
        """Name a function as pyinstrument does."""
        # By identity, as code compares by its content, which takes long. The code is kept, or the
        # identity would become that of another.
        known = self._labels.get(id(code))
        if known is None:
            if len(self._labels) >= _MOST_LABELS:
                self._labels.clear()
            parts = (code.co_qualname, code.co_filename, str(code.co_firstlineno))
            known = self._labels[id(code)] = (code, "\0".join(map(_plain, parts)))
        return known[1]


def _is_of_loop(code: CodeType) -> bool:
    """Tell whether a function runs a loop, or is what asyncio's own loop makes its calls in."""
    return code is CALLBACK or not _RUNS_LOOP.isdisjoint(code.co_names)


def _is_waiting(code: CodeType) -> bool:
    """Tell from the innermost function whether a loop without a task waits for an event.

    asyncio's own loop does so in a selector, uvloop without a function of Python.
    """
    return code.co_filename == selectors.__file__ or _is_of_loop(code)


def _plain(text: str) -> str:
    """Take from a text what means something to pyinstrument, or to the script of its page."""
    return text.replace("</", "< /").replace("<!", "< !").translate(_SEPARATORS)

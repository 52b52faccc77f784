"""Sample the stack of an event loop's thread, and render a flame graph."""

from __future__ import annotations

import selectors
import sys
import threading
import time
from typing import TYPE_CHECKING

from pyinstrument.renderers import HTMLRenderer
from pyinstrument.session import Session

from svcrun._util.current_service import current_name, current_service
from svcrun._util.tasks import CALLBACK_CODE, running_task_and_service

if TYPE_CHECKING:
    import asyncio
    from types import CodeType, FrameType

__all__ = ("Sampler",)

# These limit the memory of the sampler, and the page to some megabytes.
_MAX_STACKS = 2_000
_MAX_CALLS = 200  # of a stack
_MAX_LABELS = 10_000

_OTHER_STACKS = "(other stacks)"
_OUTER_CALLS = "(outer calls)"
_NO_SERVICE = "(no service)"

# pyinstrument's page would fetch a font and show a tree first. Its "timeline" is a flame graph,
# because equal stacks are added up here.
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
    """Sample, in a thread of its own, the stack of the calling thread and the current service.

    Times of equal stacks are added up. The time in which the loop waits is omitted.

    :param loop: the loop of the calling thread.
    :param interval: seconds between two samples.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, interval: float) -> None:
        self._loop = loop
        self._interval = interval
        self._observed = threading.get_ident()
        self._seconds: dict[tuple[str, ...], float] = {}
        self._labels: dict[int, tuple[CodeType, str]] = {}
        self._samples = 0
        self._begin = time.time()
        self._cpu_begin = time.process_time()
        self._is_stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="svcrun-sampler", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread."""
        self._is_stopped.set()
        self._thread.join()

    def render(self) -> str:
        """Return an HTML page with the flame graph of the samples so far."""
        # pyinstrument merges neighbours with the same outer calls.
        seen = sorted(self._seconds.copy().items())
        session = Session(
            frame_records=[(list(stack), seconds) for stack, seconds in seen],
            start_time=self._begin,
            duration=time.time() - self._begin,
            min_interval=self._interval,
            max_interval=self._interval,
            sample_count=self._samples,
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
            self._sample(now - last)
            last = now

    def _sample(self, seconds: float) -> None:
        self._samples += 1
        frame = sys._current_frames().get(self._observed)  # noqa: SLF001 - public but for its name
        task, service = running_task_and_service(self._loop, frame)
        if frame is None or (task is None and _is_waiting(frame.f_code)):
            return
        current_service.set(service)  # for current_name()
        tag = _plain(current_name() or _NO_SERVICE)
        root = None if task is None else getattr(task.get_coro(), "cr_frame", None)
        stack = (tag, *self._stack(frame, root))
        if stack not in self._seconds and len(self._seconds) >= _MAX_STACKS:
            stack = (tag, _OTHER_STACKS)
        self._seconds[stack] = self._seconds.get(stack, 0) + seconds

    def _stack(self, innermost: FrameType, root: FrameType | None) -> list[str]:
        """Return the calls from `root`, or from the loop, to the innermost one, as labels."""
        calls: list[str] = []
        frame: FrameType | None = innermost
        while frame is not None and not _is_of_loop(frame.f_code):
            if len(calls) == _MAX_CALLS:
                calls.append(_OUTER_CALLS)
                break
            calls.append(self._label(frame.f_code))
            if frame is root:
                break
            frame = frame.f_back
        calls.reverse()
        return calls

    def _label(self, code: CodeType) -> str:
        """Return the label of a function in pyinstrument's format."""
        # The key is the identity, because code objects compare by content, which is slow. The value
        # refers to the code object, so that its identity is not reused.
        known = self._labels.get(id(code))
        if known is None:
            if len(self._labels) >= _MAX_LABELS:
                self._labels.clear()
            parts = (code.co_qualname, code.co_filename, str(code.co_firstlineno))
            known = self._labels[id(code)] = (code, "\0".join(map(_plain, parts)))
        return known[1]


def _is_of_loop(code: CodeType) -> bool:
    """Return whether a function runs a loop, or calls the callbacks of asyncio's loop."""
    return code is CALLBACK_CODE or not _RUNS_LOOP.isdisjoint(code.co_names)


def _is_waiting(code: CodeType) -> bool:
    """Return whether a loop without a running task waits for an event.

    :param code: the innermost function. asyncio's loop waits in a selector, uvloop in no function
        written in Python.
    """
    return code.co_filename == selectors.__file__ or _is_of_loop(code)


def _plain(text: str) -> str:
    """Remove from a text the separators of pyinstrument and the tags of HTML scripts."""
    return text.replace("</", "< /").replace("<!", "< !").translate(_SEPARATORS)

"""The one loop of all that recurs: ask the schedule, wait for the moment, call, keep count."""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import Iterable
from contextvars import copy_context
from math import inf
from types import CoroutineType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias, cast

from svcrun._util.current_service import current_service, on_behalf_of
from svcrun._util.eager import Waiter, start_eagerly
from svcrun._util.tasks import current_work, format_stack, retrieve
from svcrun.errors import ParameterError, ParameterTypeError

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Context

    from svcrun._schedule.clock import Clock
    from svcrun.recurring import Recurring
    from svcrun.service.base import Service

    ExceptionsType: TypeAlias = Iterable[type[BaseException]] | type[BaseException]

__all__ = ("Overlap", "Schedule", "Series", "check_call_options")

log = logging.getLogger("svcrun.recurring")

Overlap: TypeAlias = Literal["skip", "queue", "cancel"]


class Schedule:
    """Knows the moments of a series; this one leaves them to somebody else."""

    by_wall: ClassVar[bool] = False
    """Whether they are moments of the wall clock, and not of the loop's."""

    def next(self, series: Series) -> float | None:  # noqa: ARG002 - for others
        """Return the next moment, None if it is not known yet."""
        return None

    def is_due(self, series: Series, moment: float, now: float) -> bool:  # noqa: ARG002 - for others
        """Tell whether to call at `now` for `moment`, and see to what was missed since."""
        return True

    def is_to_replan(self, series: Series, now: float) -> bool:  # noqa: ARG002 - for others
        """Tell whether to ask for the next moment anew: the wall clock was set back to `now`."""
        return False


class Series:
    """The calls of one callback on one schedule, from the start to the end.

    :param callback: what to call; it keeps count.
    :param schedule: knows when.
    :param clock: shows the time.
    :param shield: whether a call under way goes on when the series is cancelled.
    :param suppress_exceptions: are not logged.
    :param overlap: what to do when a call is due while another is under way: ``"skip"`` it,
        ``"queue"`` it, or ``"cancel"`` the other.

    Calls never overlap. One task makes them all, since a task for each costs more than a small
    call. To the callback it makes no difference: it has the task and its context for itself as long
    as it runs, and a task that it leaves changed makes no further calls.

    :raises TypeError, ValueError: naming the parameter that has a wrong value.
    """

    __slots__ = (
        "_alarm",
        "_began",
        "_call",
        "_cancelled",
        "_context",
        "_due",
        "_excused",
        "_is_late",
        "_overlap",
        "_shield",
        "_suppress",
        "_task",
        "_waiter",
        "callback",
        "clock",
        "entry",
        "follower",
        "is_over",
        "moment",
        "on_call_over",
        "schedule",
    )

    def __init__(
        self,
        callback: Recurring,
        schedule: Schedule,
        clock: Clock,
        *,
        shield: bool = False,
        suppress_exceptions: ExceptionsType = (),
        overlap: Overlap = "skip",
    ) -> None:
        suppressed = check_call_options(callback, overlap, suppress_exceptions)
        self.callback = callback
        self.schedule = schedule
        self.clock = clock
        self.is_over = False
        """Whether no more calls will begin."""
        self._shield = shield
        self._suppress = suppressed
        self._overlap = overlap
        self._context = copy_context()

        self._alarm = clock.by_wall if schedule.by_wall else clock.by_loop
        self.entry: list[Any] | None = None  # of the alarm
        self.moment = inf
        """When the next call is due, by the clock of the alarm."""
        self.on_call_over: Callable[[], object] | None = None
        """Called when a call is over."""
        self.follower: asyncio.Task[None] | None = None
        """Who determines the moments, if the schedule does not."""

        self._task: asyncio.Task[None] | None = None  # makes the calls
        self._waiter = Waiter(clock.loop)  # where it waits in between
        self._due = 0  # how many calls are due
        self._call: object = None  # stands for the call under way
        self._began = 0.0
        self._cancelled: object = None  # the call that we have cancelled
        self._excused: object = None  # the call that waits for our end, so that we don't for its
        self._is_late = False  # whether the last call that was due had to wait, or was skipped

    @property
    def service(self) -> Service | None:
        """The service that has begun the series."""
        return self._context.get(current_service)

    # When to call.

    def plan(self) -> None:
        """Have the alarm ring at the next moment, if the schedule knows it."""
        moment = self.schedule.next(self)
        if moment is not None:
            self.call_at(moment)

    def call_at(self, moment: float) -> None:
        """Have the next call at `moment`."""
        self.moment = moment
        self._alarm.add(self, moment)

    def ring(self, now: float) -> None:
        """Take note, at `now`, that the moment has come."""
        moment, self.moment = self.moment, inf  # until the next one is known
        is_due = self.schedule.is_due(self, moment, now)
        self.plan()
        if not is_due:
            return
        if self._call is not None:
            self._meanwhile()
            return
        self._is_late = False
        self._due += 1
        if self._task is None:
            self._hire()
        else:
            self._waiter.wake()

    def on_set_back(self, now: float) -> None:
        """React to a wall clock that was set back to `now`."""
        if self.schedule.is_to_replan(self, now):
            self.plan()

    def _meanwhile(self) -> None:
        """Do what is to be done when a call is due while another is under way."""
        if not self._is_late:
            self._is_late = True
            seconds = time.monotonic() - self._began
            with on_behalf_of(self.service):
                log.warning(_MEANWHILE[self._overlap], self.callback, seconds)
        if self._overlap == "queue":
            self._due += 1
            return
        if self._overlap == "skip" or self._due:
            self.callback.skipped += 1
            return
        self._due = 1
        self._cancel_call()

    # The calls.

    def _hire(self) -> None:
        """Have a task make the calls that are due."""
        if self.is_over or self._task is not None:
            return
        context = self._context.copy()
        name = self.callback.name
        task = start_eagerly(self._work(context), self.clock.loop, name=name, context=context)
        if not task.done():
            self._task = task  # it may not have begun

    async def _work(self, context: Context) -> None:
        """Make the calls that are due, until the end or until one leaves the task changed."""
        task: asyncio.Task[None] = asyncio.current_task()  # type: ignore[assignment]  # never None here
        self._task = task
        untouched = self._context
        calling = False
        try:
            while not self.is_over:
                if not self._due:
                    await self._waiter
                    continue
                self._due -= 1
                calling = True
                await self._perform(task)
                calling = False
                if (
                    context != untouched or task.cancelling() or task._callbacks  # noqa: SLF001 - the only way to know that someone waits for it
                ):
                    break
                if self._due:
                    await asyncio.sleep(0)  # a long queue is no reason to keep others waiting
        except asyncio.CancelledError:
            if not calling:  # a program that ends all tasks wants no more calls
                self.end()
            raise
        finally:
            self._task = None
            if self._due and not self.is_over and not self.clock.loop.is_closed():
                self.clock.loop.call_soon(self._hire)

    async def _perform(self, task: asyncio.Task[None]) -> None:
        callback = self.callback
        callback.calls += 1
        callback.last_start = self.clock.wall()
        self._began = began = time.monotonic()
        self._call = call = object()
        token = current_work.set(call)
        try:
            result = callback.func(*callback.args, **callback.kwargs)
            if isinstance(result, CoroutineType) or inspect.isawaitable(result):
                await result
        except self._suppress:
            callback.failures += 1
        except asyncio.CancelledError:
            if self._cancelled is not call:
                callback.failures += 1
                log.warning("%r: a call was cancelled by somebody else", callback)
            raise
        except Exception:
            callback.failures += 1
            log.exception("%r failed", callback)
        except (SystemExit, KeyboardInterrupt):
            task.add_done_callback(retrieve)  # the loop raises it, which is enough
            raise
        finally:
            callback.last_duration = time.monotonic() - began
            self._call = None
            if self.on_call_over is not None:
                self.on_call_over()
        current_work.reset(token)  # a task that was cancelled makes no further calls

    def _cancel_call(self) -> None:
        call, task = self._call, self._task
        if task is None or call is None or call is self._excused or call is self._cancelled:
            return
        self._cancelled = call
        task.cancel()

    # The end.

    def end(self) -> None:
        """Begin no more calls; idempotent."""
        self.is_over = True
        self._alarm.discard(self)
        self._waiter.wake()
        follower = self.follower
        if follower is not None and follower is not asyncio.current_task(self.clock.loop):
            follower.cancel()

    def cancel(self, tell: Callable[[], object]) -> None:
        """End the series, and the call under way unless there is a shield.

        :param tell: called when there is nothing to wait for.
        """
        self._excuse_caller()
        self.end()
        pending = self._pending()
        if self._shield and self._call is not None:
            pending = [task for task in pending if task is not self._task]
        else:
            self._cancel_call()

        def check(_: object = None) -> None:
            if all(task.done() for task in pending):
                tell()

        for task in pending:
            task.add_done_callback(check)
        check()

    async def finish(self) -> None:
        """End the series, and wait for the call under way to end by itself.

        That call is cancelled when this is cancelled meanwhile.
        """
        self._excuse_caller()
        self.end()
        try:
            await self.wait()
        except asyncio.CancelledError:
            if self._task is not None and self._call is not None:
                stack = format_stack(self._task)
                log.warning(
                    "%r: the last call is not waited for; it is at\n%s", self.callback, stack
                )
            self._cancel_call()
            raise

    async def wait(self) -> None:
        """Wait for the end of a series that was ended."""
        if self._pending():
            await asyncio.sleep(0)  # enough for a task that has no call under way
        if pending := self._pending():
            await asyncio.wait(pending)

    def _pending(self) -> list[asyncio.Task[None]]:
        """Return the tasks that have not ended and do not wait for the end themselves."""
        pending = []
        if self._task is not None and (self._call is None or self._call is not self._excused):
            pending.append(self._task)
        follower = self.follower
        if follower is not None and follower is not asyncio.current_task(self.clock.loop):
            pending.append(follower)
        return pending

    def _excuse_caller(self) -> None:
        """Do not wait for a call that waits for the end of its own series."""
        if self._call is not None and self._call is current_work.get():
            self._excused = self._call


_MEANWHILE = {
    "skip": "%r: a call takes %.3g s so far; until it is over, all that are due are skipped",
    "queue": "%r: a call takes %.3g s so far; those that are due begin after it",
    "cancel": "%r: a call takes %.3g s so far; it is cancelled since the next is due",
}


def check_call_options(
    owner: object, overlap: object, suppress_exceptions: object
) -> tuple[type[BaseException], ...]:
    """Return the exceptions to suppress as a tuple, and check the other options of a series.

    :raises ValueError, TypeError: naming `owner`, the parameter, the value and what is accepted.
    """
    if overlap not in _MEANWHILE:
        raise ParameterError(owner, "overlap", overlap, "'skip', 'queue' or 'cancel'")
    classes: tuple[object, ...] = (suppress_exceptions,)
    if isinstance(suppress_exceptions, Iterable) and not isinstance(suppress_exceptions, type):
        classes = tuple(suppress_exceptions)
    if not all(isinstance(one, type) and issubclass(one, BaseException) for one in classes):
        accepted = "an exception class, or several"
        raise ParameterTypeError(owner, "suppress_exceptions", suppress_exceptions, accepted)
    return cast("tuple[type[BaseException], ...]", classes)

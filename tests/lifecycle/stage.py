"""The stage of the actors: it checks at every step that the supervisor keeps its laws."""

# mypy: disable-error-code="misc, arg-type, syntax"

import asyncio
import contextlib
import gc
import logging
import re
from collections.abc import Iterator, Sequence
from typing import Any

from svcrun._lifecycle.service_record import ServiceRecord
from svcrun._lifecycle.shutdown import Shutdown
from svcrun._lifecycle.supervisor import Supervisor
from svcrun._util.drain import GRACE_PERIOD
from svcrun.service.base import dependencies
from svcrun.state import TRANSITIONS, ServiceState
from tests.lifecycle.actors import Actor, Ask
from tests.support_clock import VirtualClockLoop, waiting_tasks

NEW, STARTING, RUNNING, STOPPING, STOPPED, FAILED = ServiceState
AT_REST = (NEW, STOPPED, FAILED)
EPSILON = 1e-6
ACTOR = re.compile(r"<(Alpha|Beta|Gamma) \d+ [A-Z]+>")


def leaves(error: BaseException) -> Iterator[BaseException]:
    """Return the errors in a group, or the error itself."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error


class Call:
    """A call of the supervisor that is, or was, in progress."""

    def __init__(self, kind: str, actors: Sequence[Actor], asker: Actor | None) -> None:
        self.kind = kind
        self.actors = actors
        self.asker = asker
        self.alone = True
        """Whether no other call was in progress."""
        self.running = {actor for actor in actors if actor.actual is RUNNING}
        """The actors that have been running at some time during the call."""
        self.rested = {
            actor for actor in actors if actor.actual in AT_REST and not actor.needs_stop
        }
        """The actors that have been at rest at some time during the call."""
        self.rested_first = frozenset(self.rested)


class _Records(logging.Handler):
    def __init__(self, stage: "Stage") -> None:
        super().__init__()
        self.stage = stage

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if not record.exc_info:  # of an error whose traceback was logged before
            self.stage.logged += [
                error for error in self.stage.made if f"{error};" in f"{message};"
            ]
        if record.exc_info and record.exc_info[1] is not None:
            if not ACTOR.search(record.getMessage()):
                self.stage.broke(f"a log record about {record.exc_info[1]!r} names no service")
            self.stage.logged += leaves(record.exc_info[1])


class Stage:
    """The actors, their supervisor, and the laws between them."""

    def __init__(
        self, *, start_timeout: float | None, stop_timeout: float | None, closes_when_fatal: bool
    ) -> None:
        self.loop = VirtualClockLoop()
        self.start_timeout = start_timeout
        self.stop_timeout = stop_timeout
        self.closes_when_fatal = closes_when_fatal
        self.supervisor = Supervisor(
            self.loop,
            start_timeout=start_timeout,
            stop_timeout=stop_timeout,
            on_fatal=self._on_fatal,
        )
        self.released: asyncio.Future[None] = self.loop.create_future()
        self.actors: list[Actor] = []
        self.calls: list[Call] = []
        self.callers: list[asyncio.Task[None]] = []
        self.broken: list[str] = []
        self.made: list[BaseException] = []
        """The errors that scripts have raised."""
        self.logged: list[BaseException] = []
        self.raised: list[BaseException] = []
        """The errors that calls have raised."""
        self.fatal: list[BaseException] = []
        self.crashes_to_be_fatal = 0
        self.closing: asyncio.Task[None] | None = None
        self.close_began = 0.0
        self.close_limit: float = 0.0
        self.hurried = False

        self.unhandled: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda _, context: self.unhandled.append(context))
        self._records = _Records(self)
        self._log = logging.getLogger("svcrun")
        self._log.addHandler(self._records)
        self._log.propagate = False

    # Actions of the test.

    def add(self, actor: Actor) -> None:
        self.actors.append(actor)

    def spawn(self, kind: str, actors: Sequence[Actor]) -> None:
        """Call the supervisor in a task of its own."""
        self.callers.append(self.loop.create_task(self.call(kind, actors), name=f"{kind} {actors}"))

    async def asked(self, asker: Actor, ask: Ask) -> None:
        """Call the supervisor on behalf of an actor."""
        place = self.actors.index(asker)
        whom = [self.actors[(place + distance) % len(self.actors)] for distance in ask.whom]
        asker.asks += 1
        try:
            await self.call(ask.kind, whom, asker)
        finally:
            asker.asks -= 1

    async def call(self, kind: str, actors: Sequence[Actor], asker: Actor | None = None) -> None:
        call = Call(kind, actors, asker)
        if self.calls or self.supervisor.restarters or self.closing:
            call.alone = False
        for other in self.calls:
            other.alone = False
        self.calls.append(call)
        task = asyncio.current_task()
        assert task is not None
        cancelled_before = task.cancelling()
        try:
            if kind == "start":
                await self.supervisor.start(actors)
            else:
                await self.supervisor.stop(actors, None)
        except asyncio.CancelledError:
            self._check_failed(call)
            raise
        except BaseException as error:  # noqa: BLE001 - any error is a finding
            self.raised += leaves(error)
            self._check_failed(call)
            if task.cancelling() > cancelled_before:  # the error came out in place of that
                raise asyncio.CancelledError from None
        else:
            self._check_returned(call)
        finally:
            self.calls.remove(call)

    def close(self, limit: float) -> None:
        for call in self.calls:
            call.alone = False
        self.close_limit = limit
        self.close_began = self.loop.time()
        self.closing = self.loop.create_task(self.supervisor.close(None, limit), name="close")

    def force(self) -> None:
        self.hurried = True
        self.loop.call_soon(self.supervisor.force)

    def _on_fatal(self, error: BaseException) -> None:
        self.fatal.append(error)
        if self.closes_when_fatal and self.closing is None:
            self.close(20.0)

    # Reports of the actors.

    def broke(self, law: str) -> None:
        self.broken.append(f"{self.loop.time():g}: {law}")

    def error(self, actor: Actor, kind: type[BaseException]) -> BaseException:
        error = kind(f"of {actor!r}, run {actor.runs}")
        self.made.append(error)
        return error

    def record(self, actor: Actor) -> ServiceRecord | None:
        return self.supervisor._registry.get(actor)

    def shutdown(self, actor: Actor) -> Shutdown | None:
        record = self.record(actor)
        shutdown = None if record is None else record.shutdown
        assert shutdown is None or isinstance(shutdown, Shutdown)
        return shutdown

    def saw_move(self, actor: Actor) -> None:
        old, new = actor.before, actor.actual
        if new not in TRANSITIONS[old]:
            self.broke(f"{actor} was {old}")
        if new is STARTING:
            if actor.needs_stop:
                self.broke(f"{actor} was not stopped since its last start")
        elif new is RUNNING:
            actor.needs_stop = actor.has_stop
            if not actor.succeeded:
                self.broke(f"{actor} was not ready")
        elif new is FAILED and old is RUNNING:
            if actor.on_crash == "shutdown" and self.closing is None:
                self.crashes_to_be_fatal += 1
        elif old is STARTING and actor.succeeded and not actor.late:
            self.broke(f"{actor} had started")
        for call in self.calls:
            if actor in call.actors:
                if new is RUNNING:
                    call.running.add(actor)
                elif new is not STARTING and new is not STOPPING and not actor.needs_stop:
                    call.rested.add(actor)

    def saw_start(self, actor: Actor) -> None:
        if actor.actual is not STARTING:
            self.broke(f"start() of {actor} was called")
        if self.closing is not None and self.supervisor._is_closing:
            self.broke(f"{actor} is started although all is being stopped")
        required: set[Actor] = set()
        for dependency in dependencies(actor):
            if isinstance(dependency, Actor):
                required.add(dependency)
            elif not any(
                isinstance(other, dependency) and other.actual is RUNNING for other in self.actors
            ):
                self.broke(f"{actor} is started without any {dependency}")
        record = self.record(actor)
        if record is not None:
            required.update(other.service for other in record.requires)
        for other in required:
            if other.actual is not RUNNING:
                self.broke(f"{actor} is started before {other}, which it depends on")
        actor.required = frozenset(required)

    def saw_stop(self, actor: Actor) -> None:
        if not actor.needs_stop:
            self.broke(f"stop() of {actor} was called, but not due")
        actor.needs_stop = False
        if actor.actual is not STOPPING:
            self.broke(f"stop() of {actor} was called")
        if self.abandons(actor):
            return
        for dependant in self.actors:
            if actor not in dependant.required or self.abandons(dependant):
                continue
            if dependant.needs_stop or dependant.actual in (STARTING, RUNNING):
                self.broke(f"{actor} is stopped before {dependant}, which depends on it")
            record = self.record(dependant)
            if (
                dependant.stopping is not None
                and record is not None
                and record.stop_task is dependant.stopping
            ):
                self.broke(
                    f"{actor} is stopped while {dependant}, which depends on it, is being stopped"
                )

    def saw_cancel(self, actor: Actor) -> None:
        """Record that the ``start()`` or ``stop()`` of `actor` was cancelled."""
        task = asyncio.current_task()
        if task is not actor.starting and task is not actor.stopping:
            return  # an earlier run, which was left alone
        # A start that was cancelled, and came through, may get that cancellation later: the call
        # of its own that it waited for passes it on at its end.
        is_passed_on = task is actor.starting and actor.start_cancelled
        actor.cancelled = True
        actor.start_cancelled |= task is actor.starting
        if actor.cancelled_from_outside or is_passed_on:
            return
        shutdown = self.shutdown(actor)
        if shutdown is None:
            record = self.record(actor)
            if record is not None:
                self.broke(f"{actor} was cancelled, although nothing stops it")
        elif task is actor.starting and actor.actual is not STARTING:
            for record in shutdown.records:
                if record.stop_task is not None or record.needs_stop:
                    self.broke(
                        f"start() of {actor} was cancelled before {record.service!r} stopped"
                    )

    def abandons(self, actor: Actor) -> bool:
        """Whether the supervisor has abandoned the running part of `actor`."""
        shutdown = self.shutdown(actor)
        return shutdown is not None and shutdown._is_abandoning

    # The laws that are looked after from outside.

    def _check_returned(self, call: Call) -> None:
        for actor in call.actors:
            if actor is call.asker or (call.asker is not None and actor.actual is STARTING):
                continue  # it asks itself, perhaps by way of one that its first step starts
            if call.kind == "start" and actor not in call.running:
                self.broke(f"the start of {actor} came back, but it never ran")
            if call.kind == "stop" and actor not in call.rested and call.asker is None:
                self.broke(f"the stop of {actor} came back, but it never was at rest")

    def _check_failed(self, call: Call) -> None:
        if call.kind == "start" and call.alone:
            for actor in call.rested_first:
                if actor.actual not in AT_REST or actor.needs_stop:
                    self.broke(f"the start of {actor} failed, but was not rolled back")

    def check(self) -> None:
        """Check the laws that hold at any moment."""
        self._check_services()
        for actor in self.actors:
            self._check_limits(actor)
        if self.closing is not None and not self.closing.done():
            late = self.loop.time() - self.close_began
            if late > self.close_limit + 2 * GRACE_PERIOD + EPSILON:
                self.broke(f"close() takes {late:g} s\n{waiting_tasks(self.loop)}")
        assert not self.broken, "\n".join(self.broken)
        assert not self.unhandled, self.unhandled

    def _check_services(self) -> None:
        listed = self.supervisor.services
        for actor in self.actors:
            crashed = actor.actual is FAILED and actor.before is RUNNING
            if (actor in listed) != (crashed or actor.actual in (RUNNING, STOPPING)):
                self.broke(f"{actor} is listed or not: {listed}")

    def _check_limits(self, actor: Actor) -> None:
        spent = self.loop.time() - actor.since - EPSILON
        # The grace period comes twice: for a stop() that overran the limit, then for the start()
        # tasks, which are cancelled after it.
        sweeping = (
            None
            if self.stop_timeout is None
            else max(self.stop_timeout, self.close_limit) + 2 * GRACE_PERIOD
        )
        if actor.actual is STARTING:
            limit = self.start_timeout if actor.start_timeout is None else actor.start_timeout
            if limit is not None:
                if spent > limit and not actor.cancelled and not actor.asks:
                    self.broke(f"{actor} goes on for {spent:g} s")
                if sweeping is not None and spent > limit + sweeping:
                    self.broke(f"{actor} still starts after {spent:g} s")
        elif actor.actual is STOPPING:
            overrun = actor.stop_timeout is not None and spent > actor.stop_timeout
            if overrun and actor.stopping is not None and not actor.cancelled and not actor.asks:
                self.broke(f"stop() of {actor} goes on for {spent:g} s")
            if sweeping is not None and spent > sweeping:
                self.broke(f"{actor} still stops after {spent:g} s")

    def check_patience(self) -> None:
        """Check that with time limits for all, every call comes to an end."""
        if self.start_timeout is not None and self.stop_timeout is not None:
            self.loop.advance(10_000.0)
            stuck = [task.get_name() for task in self.callers if not task.done()]
            assert not stuck, f"{stuck}\n{waiting_tasks(self.loop)}"

    def end(self) -> None:
        """Close, and check that everything came to its end."""
        if self.closing is None:
            self.close(20.0)
        assert self.closing is not None
        with contextlib.suppress(AssertionError):
            self._until(self.closing)
        self.check()
        self.loop.advance(5.0)
        self.check()

        assert self.supervisor.services == ()
        assert not self.supervisor._registry.records
        assert not self.supervisor._startups
        assert not self.supervisor._shutdowns
        assert not self.supervisor.restarters
        for actor in self.actors:
            assert actor.actual in AT_REST, actor
            assert not actor.needs_stop, f"{actor} was never stopped"
            if actor.starting is not None or actor.stopping is not None:
                assert self.supervisor.hung, f"{actor} goes on, and nothing tells of it"
        stuck = [task.get_name() for task in self.callers if not task.done()]
        assert not stuck, f"{stuck}\n{waiting_tasks(self.loop)}"
        assert not self.loop.timers()

        self.released.set_result(None)
        self.loop.advance(100.0)
        assert not asyncio.all_tasks(self.loop), waiting_tasks(self.loop)
        gc.collect(1)
        self.check()
        self._check_errors()

    def _until(self, task: asyncio.Task[None]) -> None:
        async def wait() -> None:
            async with asyncio.timeout(self.close_limit + 100):
                await asyncio.wait((task,))

        self.loop.run_until_complete(wait())
        task.result()

    def _check_errors(self) -> None:
        in_errors = [leaf for error in self.supervisor.errors for leaf in leaves(error)]
        told = [*self.raised, *in_errors]
        for error in {id(error): error for error in (*self.made, *self.logged, *told)}.values():
            logged = sum(1 for other in self.logged if other is error)
            raised = sum(1 for other in told if other is error)
            assert logged <= 1, f"{error!r} was logged {logged} times"
            assert raised <= 1, f"{error!r} was raised {raised} times"
            assert logged + raised, f"{error!r} was lost"
        for error in self.fatal:
            assert any(error is other for other in self.supervisor.errors), error
        assert len(self.fatal) >= self.crashes_to_be_fatal

    def dispose(self) -> None:
        """Drop all actors and tasks, in any state."""
        self._log.removeHandler(self._records)
        self._log.propagate = True
        with contextlib.suppress(BaseException):
            if not self.released.done():
                self.released.set_result(None)
            for _ in range(5):
                for task in asyncio.all_tasks(self.loop):
                    task.cancel()
                self.loop.turn(3)
        self.loop.close()

"""Create the event loop of an entrypoint, and run a coroutine to its end despite interruptions."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from functools import cache
from importlib import import_module

from svcrun._runtime.options import sets_debug, uses_uvloop
from svcrun._util.eager import start_eagerly
from svcrun._util.hints import TYPE_CHECKING, Any
from svcrun._util.loop_internals import wakeup_descriptor
from svcrun._util.tasks import shield_after_cancellation
from svcrun.errors import ParameterError, ParameterTypeError

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from svcrun._runtime.options import Options

__all__ = ("SpareDescriptors", "drive", "drive_in_task", "make_loop")


def make_loop(options: Options) -> asyncio.AbstractEventLoop:
    """Create an event loop and set it as the current one of this thread.

    :raises ValueError: if the factory returns a closed loop.
    :raises TypeError: if the factory returns another object.
    """
    factory = options.loop_factory
    loop = _new_loop(options) if factory is None else factory()
    is_loop = isinstance(loop, asyncio.AbstractEventLoop)
    if not is_loop or loop.is_closed():
        kind = ParameterError if is_loop else ParameterTypeError
        accepted = f"a function that returns a new event loop (it returned {loop!r})"
        raise kind("entrypoint", "loop_factory", factory, accepted)
    # Without the option, the factory decides about the debug mode. uvloop reads only one of the two
    # switches of the interpreter.
    if sets_debug(options):
        loop.set_debug(options.debug)
    asyncio.set_event_loop(loop)
    return loop


def _new_loop(options: Options) -> asyncio.AbstractEventLoop:
    if uses_uvloop(options) and _has_standard_streams() and _is_importable("uvloop"):
        import uvloop

        return uvloop.new_event_loop()
    return asyncio.new_event_loop()


@cache
def _is_importable(name: str) -> bool:
    """Return whether a module can be imported.

    Python caches the modules that it has found, but searches the whole path again for a module that
    is absent. Without this cache, the search took a fifth of the processor time of a short life.
    """
    try:
        import_module(name)
    except ImportError:
        return False
    return True


def _has_standard_streams() -> bool:
    """Return whether descriptors 0 to 2 are open.

    A new loop would receive the numbers of closed ones for its own descriptors, and libuv aborts a
    process that closes a descriptor below 3.
    """
    try:
        for descriptor in range(3):
            os.fstat(descriptor)
    except OSError:
        return False
    return True


class SpareDescriptors:
    """Reserve two descriptors while the loop does not run.

    uvloop opens two descriptors whenever it begins to run. Without the reserve, a program that has
    used up its descriptors could neither run the loop nor close it.

    :param loop: the loop, which does not run.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._is_needed = wakeup_descriptor(loop) == -1
        self._held: tuple[int, ...] = ()

    def hold(self) -> None:
        """Open the descriptors, unless none are left or the loop does not need them."""
        if self._is_needed and not self._held:
            with suppress(OSError):
                self._held = os.pipe()

    def free(self) -> None:
        """Close the descriptors."""
        held, self._held = self._held, ()
        for descriptor in held:
            os.close(descriptor)


async def collect(coro: Coroutine[Any, Any, None], errors: list[BaseException]) -> None:
    """Run `coro` and append the exception that it raises to `errors`.

    A task that raised the exception would change it: the second call of ``result()`` cuts off the
    traceback, and each call sets ``__context__``. SystemExit and KeyboardInterrupt would end the
    loop. The task and the traceback of the exception would form a reference cycle.
    """
    try:
        await coro
    except BaseException as error:  # noqa: BLE001 - the caller raises it
        errors.append(error)


def drive(
    loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, None], *, cancel: bool
) -> BaseException | None:
    """Run `coro` to its end, even if the loop is stopped or an exception leaves it meanwhile.

    :param loop: a loop that does not run.
    :param cancel: whether to cancel `coro` when an exception leaves the loop.
    :returns: the first exception that left the loop, else the exception that `coro` raised, else
        None.
    """
    pid = os.getpid()
    errors: list[BaseException] = []
    task = loop.create_task(collect(coro, errors))
    interruption: BaseException | None = None
    while not task.done():
        try:
            loop.run_until_complete(task)
        except RuntimeError as error:
            if loop.is_closed() or loop.is_running():
                return error
        except (KeyboardInterrupt, SystemExit) as error:
            if os.getpid() != pid:
                return error  # the loop belongs to the parent of this process
            # Race: the task may have ended in the same iteration of the loop. Even then, return the
            # interruption.
            interruption = interruption or error
            if cancel:
                task.cancel()
        except asyncio.CancelledError as error:
            # collect() catches each exception of `coro`, so the task was cancelled before its first
            # step. Closing `coro` avoids the warning that it was never awaited.
            interruption = interruption or error
            coro.close()
    if interruption is None and errors:
        interruption = errors[0]
    errors.clear()
    try:
        return interruption
    finally:
        del interruption  # reference cycle: its traceback refers to this frame


async def drive_in_task(
    loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, None], *, name: str
) -> BaseException | None:
    """Run `coro` in a task of its own to its end, even if the caller is cancelled meanwhile.

    A cancellation of the caller cancels the task.

    :returns: the exception that `coro` raised, or the cancellation of the caller, or None.
    """
    errors: list[BaseException] = []
    task = start_eagerly(collect(coro, errors), loop, name=name)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            with shield_after_cancellation(cancelled):
                await asyncio.wait((task,))
        except asyncio.CancelledError as error:
            cancelled = error
            task.cancel()
    # Return the cancellation of the caller, not that of the task: anyio recognises a cancellation
    # of its own by the message.
    if not errors or (cancelled is not None and isinstance(errors[0], asyncio.CancelledError)):
        return cancelled
    return errors.pop()

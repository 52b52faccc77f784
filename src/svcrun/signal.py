"""Signals, which call coroutine functions when an event happens.

>>> import asyncio
>>> from svcrun import Signal, receiver
>>> ready = Signal()
>>> @receiver(ready)
... async def greet(name):
...     print("hello", name)
>>> asyncio.run(ready.call("world"))
hello world
"""

from __future__ import annotations

import logging

from svcrun._util.callables import describe, is_coroutine_function
from svcrun._util.hints import TYPE_CHECKING, Any, TypeVar
from svcrun._util.raising import raise_together
from svcrun.errors import NotACoroutineFunction

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    Receiver = Callable[..., Coroutine[Any, Any, Any]]

F = TypeVar("F", bound="Receiver")

__all__ = ("Signal", "receiver")

log = logging.getLogger(__name__)


class Signal:
    """A list of coroutine functions, the receivers, that :meth:`call` calls in order of connection.

    A frozen signal accepts no changes. An entrypoint freezes its signals when it starts. The
    decorator :func:`receiver` connects a function to a signal.
    """

    __slots__ = ("_is_frozen", "_receivers")

    def __init__(self) -> None:
        # A tuple, so that a receiver may disconnect itself during a call.
        self._receivers: tuple[Receiver, ...] = ()
        self._is_frozen = False

    def connect(self, receiver: Receiver) -> None:
        """Add a receiver, unless it is connected already.

        :param receiver: a coroutine function, or an object with an asynchronous ``__call__()``.

        :raises NotACoroutineFunction: a :class:`TypeError` and :class:`RuntimeError`, if it is
            neither.
        :raises RuntimeError: if the signal is frozen.

        >>> signal = Signal()
        >>> signal.connect(print)
        Traceback (most recent call last):
        svcrun.errors.NotACoroutineFunction: a receiver of a signal must be a coroutine function \
(async def), not <built-in function print>
        """
        if not is_coroutine_function(receiver):
            raise NotACoroutineFunction("a receiver of a signal", receiver)
        self._check_not_frozen("connect", receiver)
        if receiver not in self._receivers:
            self._receivers = (*self._receivers, receiver)

    def disconnect(self, receiver: Receiver) -> None:
        """Remove a receiver, if it is connected.

        :raises RuntimeError: if the signal is frozen.
        """
        self._check_not_frozen("disconnect", receiver)
        self._receivers = tuple(other for other in self._receivers if other != receiver)

    def _check_not_frozen(self, action: str, receiver: Receiver) -> None:
        if self._is_frozen:
            raise RuntimeError(
                f"can't {action} {describe(receiver)}: the signal is frozen, as its entrypoint has "
                "started; do it before, or on a copy()"
            )

    async def call(self, *args: Any, **kwargs: Any) -> None:
        """Call every receiver with these arguments, one after the other.

        If a receiver raises, the others are still called. Then a single exception is raised as it
        is, and several as an :class:`ExceptionGroup`. A cancellation is raised at once.
        """
        errors: list[BaseException] = []
        try:
            for receiver in self._receivers:
                try:
                    await receiver(*args, **kwargs)
                except Exception as error:  # noqa: BLE001 - raised below, after the other receivers
                    errors.append(error)
        except BaseException:
            # The cancellation replaces these errors, so they are logged.
            for failure in errors:
                log.error("a receiver of a signal failed", exc_info=failure)  # noqa: TRY400
            raise
        raise_together(f"{len(errors)} receivers of a signal failed", errors)

    def __bool__(self) -> bool:
        """Whether there are receivers."""
        return bool(self._receivers)

    def copy(self) -> Signal:
        """Return a signal with the same receivers that is not frozen."""
        clone = Signal()
        clone._receivers = self._receivers
        return clone

    def freeze(self) -> None:
        """Accept no more changes."""
        self._is_frozen = True

    @property
    def is_frozen(self) -> bool:
        """Whether the signal rejects changes."""
        return self._is_frozen

    def __repr__(self) -> str:
        frozen = " frozen" if self._is_frozen else ""
        return f"<Signal{frozen} receivers=[{', '.join(map(describe, self._receivers))}]>"


def receiver(s: Signal) -> Callable[[F], F]:
    """Connect the decorated coroutine function to a signal.

    :param s: the signal, such as ``entrypoint.PRE_START``.

    :raises TypeError: if `s` is not a signal, or the function is not a coroutine function.
    :raises RuntimeError: if the signal is frozen.

    .. code-block:: python

        from svcrun import entrypoint, receiver


        @receiver(entrypoint.PRE_START)
        async def prepare(entrypoint, services):
            print("about to start", services)
    """
    if not isinstance(s, Signal):
        raise TypeError(
            f"receiver() needs a Signal, not {s!r}; write @receiver(entrypoint.PRE_START)"
        )

    def connect(function: F) -> F:
        s.connect(function)
        return function

    return connect

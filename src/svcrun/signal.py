"""Signals: coroutine functions that are called when something happens.

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
from svcrun.errors import FrozenSignal, NotACoroutineFunction

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    Receiver = Callable[..., Coroutine[Any, Any, Any]]

F = TypeVar("F", bound="Receiver")

__all__ = ("Signal", "receiver")

log = logging.getLogger(__name__)


class Signal:
    """Coroutine functions that :meth:`call` runs, one after the other, in the order of connection.

    A frozen signal accepts no changes; an entrypoint freezes its own when it starts. See
    :func:`receiver` for the decorator that connects a function.
    """

    __slots__ = ("_is_frozen", "_receivers")

    def __init__(self) -> None:
        # A tuple, so that a copy costs nothing and a receiver may disconnect itself while called.
        self._receivers: tuple[Receiver, ...] = ()
        self._is_frozen = False

    def connect(self, receiver: Receiver) -> None:
        """Have `receiver` called from now on; connecting it again changes nothing.

        :param receiver: a coroutine function, or a callable object that works like one.

        :raises NotACoroutineFunction: a :class:`TypeError` and :class:`RuntimeError`, for others.
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
        """Have `receiver` not called any more; nothing happens if it was not connected.

        :raises RuntimeError: if the signal is frozen.
        """
        self._check_not_frozen("disconnect", receiver)
        self._receivers = tuple(other for other in self._receivers if other != receiver)

    def _check_not_frozen(self, action: str, receiver: Receiver) -> None:
        if self._is_frozen:
            raise FrozenSignal(action, describe(receiver))

    async def call(self, *args: Any, **kwargs: Any) -> None:
        """Call every receiver with these arguments, each when the one before has finished.

        A receiver that fails does not keep the others from being called. What they raised comes out
        afterwards: as it is, or as an :class:`ExceptionGroup` of several. A cancellation comes out
        at once.
        """
        errors: list[BaseException] = []
        try:
            for receiver in self._receivers:
                try:
                    await receiver(*args, **kwargs)
                except Exception as error:  # noqa: BLE001 - raised below, after the other receivers
                    errors.append(error)
        except BaseException:
            # Whoever cancels won't hear of these, so the log has to.
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
        """Whether changes are refused."""
        return self._is_frozen

    def __repr__(self) -> str:
        frozen = " frozen" if self._is_frozen else ""
        return f"<Signal{frozen} receivers=[{', '.join(map(describe, self._receivers))}]>"


def receiver(s: Signal) -> Callable[[F], F]:
    """Connect the decorated coroutine function to a signal.

    :param s: the signal, such as ``entrypoint.PRE_START``.

    :raises TypeError: if `s` is not a signal; also see :meth:`Signal.connect`.

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

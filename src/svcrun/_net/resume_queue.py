"""Schedule the handlers of a server whose data has arrived."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from svcrun._util.eager import wake_all

if TYPE_CHECKING:
    from svcrun._util.eager import Waiter

__all__ = ("ResumeQueue",)

# The size at which a group is resumed at once. The state of so many connections fits into the
# processor's caches from the read to the answer; that of five hundred TLS connections does not.
GROUP: Final = 64

# The number of handlers that are resumed directly after an iteration of the loop with one handler.
DIRECT: Final = 16


class ResumeQueue:
    """Resume handlers directly under low load, and in groups under high load.

    Resuming a handler within the callback that received its data saves an iteration of the loop.
    When many connections are readable at once, it is cheaper to receive from all of them first and
    to answer them afterwards: the code of each step stays in the processor's caches, and a client
    that waits for several answers is woken once. If the queue holds one handler at the end of an
    iteration, the next :data:`DIRECT` handlers bypass it.

    Invariant: each waiter is resumed once. A queued waiter leaves the list when it is woken, and
    the callback that a full group leaves behind finds only the waiters queued after it.
    """

    __slots__ = ("_direct", "_is_crowded", "_is_scheduled", "_waiters")

    def __init__(self) -> None:
        self._direct = 0
        self._waiters: list[Waiter] = []
        self._is_scheduled = False
        # Whether a full group was resumed in this iteration of the loop.
        self._is_crowded = False

    def resume(self, waiter: Waiter) -> None:
        """Resume the task that `waiter` suspends, now or at the end of this iteration."""
        if self._direct:
            self._direct -= 1
            waiter.wake()
            return
        waiters = self._waiters
        waiters.append(waiter)
        if not self._is_scheduled:
            self._is_scheduled = True
            waiter.get_loop().call_soon(self._end_iteration)
        elif len(waiters) >= GROUP:
            self._waiters = []
            self._is_crowded = True
            wake_all(waiters)

    def _end_iteration(self) -> None:
        waiters, self._waiters = self._waiters, []
        self._is_scheduled = False
        if len(waiters) == 1 and not self._is_crowded:
            self._direct = DIRECT
        self._is_crowded = False
        wake_all(waiters)

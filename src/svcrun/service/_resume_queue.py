"""When the handlers of a server are resumed whose data has arrived."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from svcrun.eager import wake_all

if TYPE_CHECKING:
    from svcrun.eager import Waiter

__all__ = ("ResumeQueue",)

# A group this large is resumed at once. While its connections are read and answered, they are in
# the processor's caches; five hundred TLS connections are not.
GROUP: Final = 64

# After a handler that was alone in its iteration of the loop, this many are resumed directly.
DIRECT: Final = 16


class ResumeQueue:
    """Resume handlers one by one while little goes on, and in groups under load.

    To resume a handler directly, within the callback that received its data, saves an iteration
    of the loop. When many connections are readable at once, however, it is cheaper to receive
    from all of them, and only then to answer all: the code of either is in the processor's caches,
    and a client that waits for several answers is woken once. An iteration shows which of the two
    it is: a queue that held one handler at its end is bypassed for the next few.
    """

    __slots__ = ("_direct", "_is_crowded", "_is_scheduled", "_waiters")

    def __init__(self) -> None:
        self._direct = 0
        self._waiters: list[Waiter] = []
        self._is_scheduled = False
        # Whether a whole group was resumed in this iteration.
        self._is_crowded = False

    def resume(self, waiter: Waiter) -> None:
        """Resume the task that waits at `waiter`, now or in the next iteration of the loop."""
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

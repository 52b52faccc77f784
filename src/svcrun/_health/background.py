"""Make responses that may take long in a thread of their own."""

from __future__ import annotations

import logging
import queue
import threading
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from svcrun._health.http import FAILED, Response

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")

__all__ = ("BUSY", "LATE", "Background")

log = logging.getLogger("svcrun.service.health")

_JOIN_TIMEOUT: Final = 1.0

BUSY: Final = Response(
    HTTPStatus.SERVICE_UNAVAILABLE, "an earlier request has not been answered yet\n"
)
LATE: Final = Response(HTTPStatus.SERVICE_UNAVAILABLE, "the response took too long\n")


class Background(Generic[T]):
    """A thread that makes one response at a time, for a connection of another thread.

    A response may run code of the program, which may never return. The thread is a daemon then, and
    the other requests are answered.

    :param notify: called in this thread when a response is ready.
    """

    def __init__(self, notify: Callable[[], object]) -> None:
        self._notify = notify
        self._jobs: queue.SimpleQueue[tuple[T, Callable[[], Response]] | None] = queue.SimpleQueue()
        self._ready: queue.SimpleQueue[tuple[T, Response]] = queue.SimpleQueue()
        self.is_busy = False
        """Whether a response is being made."""
        self._has_failed = False
        self._thread = threading.Thread(target=self._run, name="health-scrape", daemon=True)

    def start(self) -> None:
        """Start the thread.

        :raises RuntimeError: if the system can't start a thread.
        """
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and wait for it unless it is busy."""
        self._jobs.put(None)
        if self._thread.is_alive() and not self.is_busy:
            self._thread.join(_JOIN_TIMEOUT)

    def begin(self, connection: T, make: Callable[[], Response]) -> bool:
        """Begin to make the response for `connection`, unless the thread is busy."""
        if self.is_busy:
            return False
        self.is_busy = True
        self._jobs.put((connection, make))
        return True

    def ready(self) -> Iterator[tuple[T, Response]]:
        """Return the responses that are ready, each with its connection."""
        while not self._ready.empty():
            yield self._ready.get()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            connection, make = job
            response = self._make(make)
            self._ready.put((connection, response))
            # Invariant: the response is in the queue before another one may begin.
            self.is_busy = False
            self._notify()
            del job, connection, response  # not until the next request

    def _make(self, make: Callable[[], Response]) -> Response:
        try:
            response = make()
        except Exception as error:
            # A scraper repeats its request every few seconds.
            level = logging.DEBUG if self._has_failed else logging.ERROR
            log.log(level, "could not make the response to a request", exc_info=error)
            self._has_failed = True
            return FAILED
        self._has_failed = False
        return response

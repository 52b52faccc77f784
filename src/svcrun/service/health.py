"""A service that answers health checks of the program over HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from svcrun._health.checks import HealthChecks
from svcrun._health.loop_pause import LoopPause
from svcrun._health.probes import BUSY_AFTER, Probes
from svcrun._health.server import MAX_CONNECTIONS, HTTPThread
from svcrun._health.status import ProgramStatus
from svcrun._insight.loop_watch import LoopWatch
from svcrun._util.validation import number
from svcrun.errors import show
from svcrun.service._internals import part_of
from svcrun.service._listening import Listening
from svcrun.service._observer import Observer
from svcrun.service._parameters import parameter
from svcrun.service.base import dependencies, state_of

if TYPE_CHECKING:
    import os
    import socket

    from svcrun._util.observed_entrypoint import ObservedEntrypoint

__all__ = ("HealthService",)

_SECONDS = number(above=0, unit="seconds")

WATCH_INTERVAL = 0.2
"""Seconds between two timers of the loop, and so the inaccuracy of the time it was blocked."""


class HealthService(Observer, Listening, base=True):
    """Show the health of the program over HTTP, also while the event loop is blocked.

    A thread with a socket of its own answers them. It begins before the first service starts and
    ends after the last one has stopped, in whatever position the service is passed.

    - ``/livez`` responds with 200 while the event loop runs. If the loop has been blocked for more
      than a second, the response names the service that blocks it. If it has been blocked for
      `hung_after` seconds, the status is 503. Time in which the process did not run does not count.
    - ``/readyz`` responds with 200 when all services run and are healthy, otherwise with 503 and
      the reasons. It responds with 503 from the first signal to shut down on.
    - ``/metrics`` responds with the metrics of all services, by the extra ``prometheus``.
    - ``/`` is a page for people, with the dependencies, states and errors of the services.

    A service that has a coroutine method ``health()`` without parameters is healthy unless that
    raises an exception.

    :param address: an IP address, a host name, or the path of a Unix socket; ``"127.0.0.1"`` by
        default. Probes of Kubernetes come from another host: ``"0.0.0.0"`` or ``"::"`` is for them.
    :param port: 0 to 65535; 8081 by default. 0 selects a free port.
    :param hung_after: seconds after which a blocked loop makes ``/livez`` fail; 30 by default.
    :param check_interval: seconds between the starts of two calls of a ``health()``; 5 by default.
    :param check_timeout: seconds that such a call may take; 1 by default.
    :param expose: whether clients beyond loopback are shown errors, paths, stacks and the page as
        well; False by default.

    :raises ValueError, TypeError: naming a parameter whose value is not accepted.

    .. code-block:: python

        class Disk(Service):
            async def start(self): ...

            async def health(self):
                if shutil.disk_usage("/").free < 1_000_000:
                    raise OSError("the disk is full")


        with entrypoint(Disk(), HealthService(port=8081)) as loop:
            loop.run_forever()
    """

    PROTO_NAME = "http"

    name: str = "health"
    address: str | os.PathLike[str] | None = parameter(default="127.0.0.1", kw_only=False)
    port: int | None = parameter(default=8081, kw_only=False)
    hung_after: float = parameter(default=30.0, check=_SECONDS)
    check_interval: float = parameter(default=5.0, check=_SECONDS)
    check_timeout: float = parameter(default=1.0, check=_SECONDS)
    expose: bool = False

    async def start(self) -> None:
        """Begin to check the services; the entrypoint has let this one listen before.

        :raises OSError: if the address can't be bound; it names address, port and service.
        :raises RuntimeError: if the system has no more threads, or there is no entrypoint.
        """
        own = part_of(self, _Parts)
        if own.error is not None:
            raise own.error
        if own.entrypoint is None:
            raise RuntimeError(f"{show(self)} works only in an entrypoint")
        if self._svcrun_socket is None:  # it was stopped while the entrypoint ran
            self.__listen(own.entrypoint)
        own.checks.begin()

    async def stop(self, exception: Any = None) -> None:
        """Close the socket, unless the entrypoint shuts down and closes it after all services."""
        await super().stop(exception)
        entrypoint = part_of(self, _Parts).entrypoint
        if entrypoint is None or entrypoint.is_ready:
            self.__close()

    def __listen(self, entrypoint: ObservedEntrypoint) -> None:
        """Bind the socket and start the threads, all of it or nothing."""
        sock = self._svcrun_bind_at_once(MAX_CONNECTIONS)
        try:
            part_of(self, _Parts).open(self, entrypoint, sock)
        except BaseException:
            self._svcrun_unbind()
            raise

    def __close(self) -> None:
        """End the threads and the checks, and close the socket. Idempotent."""
        if self._svcrun_socket is not None:
            part_of(self, _Parts).close()
            self._svcrun_unbind()

    # Called by the entrypoint.

    def _svcrun_entering(self, entrypoint: ObservedEntrypoint) -> None:
        own = part_of(self, _Parts)
        own.entrypoint, own.error = entrypoint, None
        try:
            self.__listen(entrypoint)
        except Exception as error:  # noqa: BLE001 - start() raises it
            own.error = error

    _svcrun_joined = _svcrun_entering

    def _svcrun_started(self) -> None:
        if self._svcrun_socket is not None:
            part_of(self, _Parts).checks.begin()

    def _svcrun_left(self) -> None:
        self.__close()
        part_of(self, _Parts).entrypoint = None


class _Parts:
    """The entrypoint of a service, and the parts that exist while the service listens."""

    checks: HealthChecks
    watch: LoopWatch
    pause: LoopPause
    thread: HTTPThread

    def __init__(self, _: HealthService) -> None:
        self.entrypoint: ObservedEntrypoint | None = None
        self.error: BaseException | None = None
        """The exception that kept the service from listening, which ``start()`` raises."""

    def open(
        self, service: HealthService, entrypoint: ObservedEntrypoint, sock: socket.socket
    ) -> None:
        """Start the threads, both or none."""
        loop, supervisor = entrypoint.loop, entrypoint.supervisor
        self.checks = HealthChecks(
            loop, lambda: supervisor.running, service.check_interval, service.check_timeout
        )
        self.watch = LoopWatch(loop, BUSY_AFTER, WATCH_INTERVAL, log=None)
        status = ProgramStatus(entrypoint, self.checks, state_of, dependencies)
        probes = Probes(status, self.watch, service.hung_after, expose=service.expose)
        self.pause = LoopPause(loop, sock)
        self.thread = HTTPThread(sock, probes.respond, self.pause)
        self.thread.start()
        try:
            self.watch.start("health-watch")
        except BaseException:
            self.thread.stop()
            raise
        self.pause.open()

    def close(self) -> None:
        """End the threads and the checks."""
        self.pause.close()
        self.thread.stop()
        self.watch.cancel()
        self.checks.close()

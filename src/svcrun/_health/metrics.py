"""The metrics of a program, and their values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from svcrun.log.counts import counts
from svcrun.state import ServiceState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from svcrun._health.status import ProgramStatus
    from svcrun._insight.loop_watch import LoopWatch

__all__ = ("METRICS", "Description", "Metrics")


class Description(NamedTuple):
    """The description of a metric."""

    kind: str
    """``"counter"`` or ``"gauge"``."""
    text: str
    labels: tuple[str, ...] = ("service",)


METRICS: Final = {
    "service_state": Description(
        "gauge", "1 for the current state of a service, 0 for the others", ("service", "state")
    ),
    "crashes_total": Description("counter", "crashes of a service"),
    "restarts_total": Description("counter", "starts of a service after a crash"),
    "start_seconds": Description("gauge", "seconds that the last start of a service took"),
    "stop_seconds": Description("gauge", "seconds that the last stop() of a service took"),
    "connections_accepted_total": Description("counter", "connections that a server accepted"),
    "connections_open": Description("gauge", "open connections of a server"),
    "connections_refused_total": Description(
        "counter", "accepted connections that were closed before their handler ran"
    ),
    "datagrams_dropped_total": Description("counter", "datagrams that a server did not handle"),
    "datagrams_unsent_total": Description("counter", "datagrams that a server could not send"),
    "calls_total": Description("counter", "calls of a periodic or cron service that began"),
    "failures_total": Description("counter", "calls that raised an exception"),
    "skipped_total": Description("counter", "calls that were due and did not begin"),
    "call_seconds_total": Description("counter", "seconds that all calls took"),
    "call_lateness_seconds_total": Description(
        "counter", "seconds from the times at which calls were due to their beginnings"
    ),
    "ready": Description(
        "gauge", "1 if the program has started and does not shut down, else 0", ()
    ),
    "loop_lag_seconds": Description("gauge", "seconds by which the event loop is late", ()),
    "loop_blocked_seconds_total": Description(
        "counter", "seconds for which the event loop was blocked for a second or longer", ()
    ),
    "log_records_written_total": Description("counter", "log records that were written", ()),
    "log_records_dropped_total": Description("counter", "log records that were lost", ()),
    "threads_busy": Description("gauge", "threads of the pool that run a job", ()),
    "threads_max": Description("gauge", "threads that the pool may have", ()),
    "thread_jobs_waiting": Description("gauge", "jobs that wait for a thread of the pool", ()),
}
"""The metrics by their names without the prefix ``svcrun_``."""


class Metrics:
    """The values of the metrics of a program; any thread may ask for them.

    :param status: the status of the program.
    :param watch: the watch over its event loop.
    """

    def __init__(self, status: ProgramStatus, watch: LoopWatch) -> None:
        self._status = status
        self._watch = watch

    def samples(self) -> Iterator[tuple[str, tuple[str, ...], float]]:
        """Return the name, the labels and the value of each sample."""
        for one in self._status.services():
            label = (one.label,)
            for state in ServiceState:
                yield "service_state", (*label, state.value), state.value == one.state
            for name, value in self._measure_life(one.service).items():
                if value is not None:
                    yield name, label, value
            for name, value in one.service._svcrun_measure().items():  # noqa: SLF001 - not the user's
                yield name, label, value
        for name, value in self._measure_program().items():
            yield name, (), value

    def _measure_life(self, service: Any) -> dict[str, float | None]:
        history = self._status.history.of(service)
        if history is None:
            return {}
        return {
            "crashes_total": history.crashes,
            "restarts_total": history.restarts,
            "start_seconds": history.start_seconds,
            "stop_seconds": history.stop_seconds,
        }

    def _measure_program(self) -> dict[str, float]:
        lag = self._watch.figures()
        figures = {
            "ready": float(self._status.is_ready),
            "loop_lag_seconds": lag.last,
            "loop_blocked_seconds_total": lag.blocked,
            "log_records_written_total": counts.written,
            "log_records_dropped_total": counts.dropped,
        }
        pool = self._status.pool
        if pool is not None:
            figures |= {
                "threads_busy": pool.busy,
                "threads_max": pool.size,
                "thread_jobs_waiting": pool.waiting,
            }
        return figures

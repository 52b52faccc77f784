"""Warn of servers that have started and do not listen."""

from __future__ import annotations

import logging

from svcrun._util.current_service import on_behalf_of
from svcrun._util.hints import TYPE_CHECKING
from svcrun.errors import show
from svcrun.state import ServiceState

if TYPE_CHECKING:
    import asyncio

    from svcrun._lifecycle.service_record import ServiceRecord

log = logging.getLogger("svcrun.lifecycle")

__all__ = ("check_listening",)

LISTEN_TIMEOUT = 1.0
"""Seconds within which a server has to listen after ``start_event``, if ``start()`` runs on."""


def check_listening(record: ServiceRecord, loop: asyncio.AbstractEventLoop) -> None:
    """Log a warning if the server of `record`, which is ready, does not listen.

    A ``start()`` that runs on may listen later, so the check follows after a time.
    """
    if record.shutdown is not None or record.service._svcrun_listens():
        return
    if record.start_task is None:
        _warn(record)
    else:
        record.timer = loop.call_later(LISTEN_TIMEOUT, _warn, record)


def _warn(record: ServiceRecord) -> None:
    service = record.service
    if record.state is ServiceState.RUNNING and not service._svcrun_listens():
        with on_behalf_of(service):
            log.warning(
                "%s does not listen; an overriding start() has to await super().start()",
                show(service),
            )

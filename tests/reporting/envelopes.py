"""A server that collects the envelopes of sentry-sdk."""

import gzip
import json
from typing import Any

from svcrun.service.sentry import SentrySender
from tests.reporting.collectors import Collector, Request
from tests.support import eventually

Event = dict[str, Any]


class EnvelopeCollector(Collector):
    """Collect envelopes (parameters as of :class:`Collector`)."""

    def sender(self, **options: Any) -> SentrySender:
        """Make a sender that reports here, and has time to send all of it when it stops."""
        parameters: dict[str, Any] = {"sentry_dsn": self.dsn(), "flush_timeout": 30}
        return SentrySender(**parameters | options)

    @property
    def items(self) -> list[tuple[str, Event]]:
        """The kind and the content of each item in the envelopes."""
        return [item for request in self.requests for item in open_envelope(request)]

    @property
    def events(self) -> list[Event]:
        """The events that came."""
        return [item for kind, item in self.items if kind == "event"]

    @property
    def messages(self) -> list[str]:
        """The texts of the events that are about a log record."""
        return [event["logentry"]["formatted"] for event in self.events if event.get("logentry")]

    @property
    def errors(self) -> list[str]:
        """The messages of the received exceptions."""
        return [
            event["exception"]["values"][-1]["value"]
            for event in self.events
            if "exception" in event
        ]

    async def wait_for_events(self, count: int) -> list[Event]:
        """Wait until so many events came, and return them."""
        await eventually(lambda: len(self.events) >= count)
        return self.events


def open_envelope(request: Request) -> list[tuple[str, Event]]:
    """Return the items of an envelope with their kinds."""
    assert request.path == "/api/42/envelope/"
    _, *lines = gzip.decompress(request.body).splitlines()
    heads, items = lines[::2], lines[1::2]
    return [
        (json.loads(head)["type"], json.loads(item))
        for head, item in zip(heads, items, strict=True)
    ]

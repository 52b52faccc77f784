"""The metrics of a program in the formats of Prometheus, by the library prometheus-client."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import choose_encoder

from svcrun._health.http import Response
from svcrun._health.metrics import METRICS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from svcrun._health.http import Request
    from svcrun._health.metrics import Metrics

__all__ = ("Exposition",)

_FAMILIES = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily}


class Exposition:
    """Respond to scrapes.

    The response has the given metrics, and those that the program has registered in the registry
    of the library.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        # Not in the registry of the program: it refuses a second collector of the same names, which
        # another entrypoint in the process would be.
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self._registry.register(REGISTRY)

    def respond(self, request: Request) -> Response:
        """Return the metrics in the format that the client accepts.

        :raises Exception: if a collector of the program does.
        """
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(HTTPStatus.OK, encode(self._registry), content_type)

    def collect(self) -> Iterator[Any]:
        """Return the metrics as objects of the library; the registry calls this."""
        families = {
            name: _FAMILIES[metric.kind](f"svcrun_{name}", metric.text, labels=metric.labels)
            for name, metric in METRICS.items()
        }
        for name, labels, value in self._metrics.samples():
            # The library can't encode lone surrogates, which a name may have.
            valid = [label.encode("utf-8", "backslashreplace").decode() for label in labels]
            families[name].add_metric(valid, value)
        return (family for family in families.values() if family.samples)

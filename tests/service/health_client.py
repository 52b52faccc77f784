"""A client of :class:`svcrun.service.health.HealthService`, and services to be asked for."""

import asyncio
import contextlib
import http.client
import json
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from svcrun import Service, entrypoint
from svcrun.service.health import HealthService
from tests.support import LoopFactory


class Answer(NamedTuple):
    status: int
    text: str
    content_type: str = ""

    @property
    def data(self) -> Any:
        return json.loads(self.text)


def ask(
    service: HealthService | int | None,
    path: str,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
) -> Answer:
    port = service.port if isinstance(service, HealthService) else service
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    with contextlib.closing(connection):
        connection.request(method, path, headers=headers or {})
        response = connection.getresponse()
        kind = response.headers["content-type"]
        return Answer(response.status, response.read().decode(), kind)


class Idle(Service):
    async def start(self) -> None: ...


def make(**kwargs: Any) -> HealthService:
    return HealthService(**{"port": 0, "check_interval": 0.02, **kwargs})


def wait_until(check: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def run_beside(
    loop_factory: LoopFactory, function: Callable[[], object], *services: Service, **options: Any
) -> None:
    """Run a function in a thread while an entrypoint runs services."""
    with entrypoint(*services, loop_factory=loop_factory, log_config=False, **options) as loop:
        loop.run_until_complete(asyncio.to_thread(function))

"""Fixtures of the server tests: the same laws hold on every loop, without TLS and with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.service.streams import Transport
from tests.support import LoopFactory, loop_factories

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.conftest import Certificates
    from tests.service.webs import Web


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, LoopFactory] | None:
    """Run the tests of servers on each kind of loop, because loops differ in their transports."""
    servers = ("aiohttp", "asgi", "stream", "tcp", "tls", "udp", "uvicorn")
    if item.path.name.startswith(tuple(f"test_{server}" for server in servers)):
        return loop_factories()
    return None


@pytest.fixture(params=["tcp", "tls"])
def transport(request: pytest.FixtureRequest, certificates: Certificates) -> Transport:
    """Plain TCP and TLS in turn."""
    return Transport(certificates if request.param == "tls" else None)


@pytest.fixture
def tcp() -> Transport:
    """Plain TCP, for laws that TLS does not affect."""
    return Transport(None)


@pytest.fixture(params=["http", "https"])
def web(request: pytest.FixtureRequest, certificates: Certificates) -> Web:
    """HTTP and HTTPS in turn."""
    from tests.service.webs import Web  # it needs aiohttp

    return Web(certificates if request.param == "https" else None)


@pytest.fixture
def http() -> Web:
    """Plain HTTP, for laws that TLS does not affect."""
    from tests.service.webs import Web

    return Web(None)


@pytest.fixture
def https(certificates: Certificates) -> Web:
    """HTTPS, for laws about TLS."""
    from tests.service.webs import Web

    return Web(certificates)

"""What the tests of stream servers share: the same laws, on every loop, without TLS and with it."""

from collections.abc import Mapping

import pytest

from tests.conftest import Certificates
from tests.service.streams import Transport
from tests.support import LoopFactory, loop_factories


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, LoopFactory] | None:
    """Run the tests of servers on each kind of loop: what they do differs."""
    if item.path.name.startswith(("test_stream", "test_tcp", "test_tls", "test_udp")):
        return loop_factories()
    return None


@pytest.fixture(params=["tcp", "tls"])
def transport(request: pytest.FixtureRequest, certificates: Certificates) -> Transport:
    """Plain TCP and TLS in turn."""
    return Transport(certificates if request.param == "tls" else None)


@pytest.fixture
def tcp() -> Transport:
    """Plain TCP, for what TLS does not change."""
    return Transport(None)
